"""The pictures of the study's page: measures against each other, and images of the same seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

#: Images of a model, and pixels of each across.
SHOWN, SIZE = 8, 64


def draw(records: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw every run: its reward in training, and at its end against aesthetic and diversity.

    ``records`` are those of the page's rows, by arm; the base is that of the first. The scores at
    the end are of seen prompts. SFT, which draws no images in training, has no curve.
    """
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    training, *ends = figure.subplots(1, 3)
    training.set(xlabel="denoiser evaluations, thousands", ylabel="reward/mean")
    for panel, measure in zip(ends, ("aesthetic", "diversity"), strict=True):
        panel.set(xlabel="image-reward", ylabel=measure)
        scores = next(iter(records.values()))["scores"]["seen"][""]
        base = (scores["image-reward"]["base"], scores[measure]["base"])
        panel.scatter(*base, color="black", marker="*", s=90, label="base")
    for number, (arm, record) in enumerate(records.items()):
        color = f"C{number % 10}"
        for run in record["runs"].values():
            if "grid/reward" in run:
                done = [evaluations / 1000 for evaluations in run["denoiser_evaluations"]]
                training.plot(done, run["reward/mean"], color=color, linewidth=1)
        for panel, measure in zip(ends, ("aesthetic", "diversity"), strict=True):
            scores, seeds = record["scores"]["seen"][""], list(record["runs"])
            panel.scatter(
                [scores["image-reward"][seed] for seed in seeds],
                [scores[measure][seed] for seed in seeds],
                color=color,
                marker="os^"[number // 10],
                label=arm,
            )
    ends[-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
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
