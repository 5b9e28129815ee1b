"""The pictures of the study's page: measures against each other, and images of the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from page import Compared

#: Images of an arm, and pixels of each across.
SHOWN, SIZE = 8, 64


def draw(compared: Compared, arms: Sequence[str], path: Path) -> None:
    """Draw every training's reward against its aesthetic score and diversity, on seen prompts."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, measure in zip(panels, ("aesthetic", "diversity"), strict=True):
        for number, arm in enumerate(arms):
            panel.scatter(
                compared.by_seed(arm, "image-reward", "seen"),
                compared.by_seed(arm, measure, "seen"),
                color=f"C{number % 10}",
                marker="os^"[number // 10],
                label=arm,
            )
        panel.set(xlabel="image-reward", ylabel=measure)
    panels[1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def show(compared: Compared, arms: Sequence[str], path: Path) -> None:
    """Show a row for each arm: its first training's images of the first prompt, by seed."""
    models = {each.arm.name: each.name for each in reversed(compared.trainings)}
    sheet = Image.new("RGB", (SHOWN * SIZE, len(arms) * SIZE), "white")
    for row, arm in enumerate(arms):
        folder = compared.folder / "images" / models.get(arm, "base") / "0"
        for column, file in enumerate(sorted(folder.glob("*.png"))[:SHOWN]):
            with Image.open(file) as image:
                sheet.paste(image.resize((SIZE, SIZE)), (column * SIZE, row * SIZE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
