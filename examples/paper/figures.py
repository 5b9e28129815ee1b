"""The pictures of the study's page: measures against each other, and images of the same seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

#: Images of a model, and pixels of each across.
SHOWN, SIZE = 8, 64


def draw(records: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw every run's reward against its aesthetic score and diversity, on seen prompts.

    ``records`` are those of the page's rows, by arm; the base is that of the first.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, measure in zip(panels, ("aesthetic", "diversity"), strict=True):
        for number, (arm, record) in enumerate(records.items()):
            scores = record["scores"]["seen"][""]
            seeds = list(record["runs"])
            if number == 0:
                base = (scores["image-reward"]["base"], scores[measure]["base"])
                panel.scatter(*base, color="black", marker="*", s=90, label="base")
            panel.scatter(
                [scores["image-reward"][seed] for seed in seeds],
                [scores[measure][seed] for seed in seeds],
                color=f"C{number % 10}",
                marker="os^"[number // 10],
                label=arm,
            )
        panel.set(xlabel="image-reward", ylabel=measure)
    panels[1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def show(images: Path, models: Sequence[str], path: Path) -> None:
    """Show a row of images for each model: of the first prompt, or of prompts all over a long list.

    ``images`` is the folder of an evaluation's images, which has one for each model and prompt.
    """
    sheet = Image.new("RGB", (SHOWN * SIZE, len(models) * SIZE), "white")
    for row, model in enumerate(models):
        for column, file in enumerate(chosen(images / model)):
            with Image.open(file) as image:
                sheet.paste(image.resize((SIZE, SIZE)), (column * SIZE, row * SIZE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def chosen(folder: Path) -> list[Path]:
    """Return the files of `SHOWN` images of a model."""
    prompts = sorted(folder.iterdir())
    if len(prompts) < SHOWN:
        return sorted(prompts[0].glob("*.png"))[:SHOWN]
    apart = (prompts[number * len(prompts) // SHOWN] for number in range(SHOWN))
    return [min(prompt.glob("*.png")) for prompt in apart]
