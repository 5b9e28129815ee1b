"""Pictures of a run: its metrics over the rounds, and image grids side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def plot_metrics(history: Sequence[Mapping[str, float]], file: Path) -> None:
    """Draw the run as PNG: reward (mean and a band of one standard deviation) and KL over RL's
    rounds, or the loss and KL over the steps of supervised fine-tuning, whose rewards stay.

    ``history`` is what metrics.jsonl holds, one mapping a round or some steps.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    def series(key: str) -> list[float]:
        return [record[key] for record in history]

    unit = "step" if "step" in history[0] else "round"
    numbers = series(unit)
    figure = Figure(figsize=(7, 5), layout="constrained")
    top, kl = figure.subplots(2, 1, sharex=True)
    what = "loss" if unit == "step" else "reward"
    mean = series("loss" if unit == "step" else "reward/mean")
    if unit == "round":
        std = series("reward/std")
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        top.fill_between(numbers, low, high, alpha=0.2, color="tab:green", linewidth=0)
    top.plot(numbers, mean, color="tab:green", marker=".")
    top.set_ylabel(what)
    kl.plot(numbers, series("kl"), color="tab:blue", marker=".")
    kl.set_ylabel("KL to the reference")
    kl.set_xlabel(unit)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def side_by_side(pictures: Mapping[str, Image]) -> Image:
    """Put pictures beside each other, each under its title."""
    from PIL import Image, ImageDraw, ImageFont

    gap, head = 16, 28
    width = sum(picture.width for picture in pictures.values()) + gap * (len(pictures) - 1)
    height = head + max(picture.height for picture in pictures.values())
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    left = 0
    for title, picture in pictures.items():
        draw.text((left + 4, 4), title, fill="black", font=ImageFont.load_default(size=18))
        sheet.paste(picture, (left, head))
        left += picture.width + gap
    return sheet
