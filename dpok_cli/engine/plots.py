"""Pictures of a run: its metrics over the rounds, and image grids side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def plot_metrics(history: Sequence[Mapping[str, float]], file: Path) -> None:
    """Draw reward (mean and a band of one standard deviation) and KL over the rounds, as PNG.

    ``history`` is what metrics.jsonl holds, one mapping a round.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    def series(key: str) -> list[float]:
        return [record[key] for record in history]

    rounds, mean, std = series("round"), series("reward/mean"), series("reward/std")
    figure = Figure(figsize=(7, 5), layout="constrained")
    reward, kl = figure.subplots(2, 1, sharex=True)
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    reward.fill_between(rounds, low, high, alpha=0.2, color="tab:green", linewidth=0)
    reward.plot(rounds, mean, color="tab:green", marker=".")
    reward.set_ylabel("reward")
    kl.plot(rounds, series("kl"), color="tab:blue", marker=".")
    kl.set_ylabel("KL to the reference")
    kl.set_xlabel("round")
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
