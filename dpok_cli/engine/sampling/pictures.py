"""Pictures for people: enlarged if small, in grids, and side by side. Without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dpok_cli.rewards.images import to_pil as to_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

#: Pictures with a longer side below this are enlarged by a whole factor.
SMALL = 192


def enlargement(size: tuple[int, int]) -> int:
    """Return the whole factor by which a picture of ``size`` pixels is shown larger, or 1."""
    return max(1, SMALL // max(size))


def enlarge(picture: Image) -> Image:
    """Return a small picture with each pixel as a square, so that its pixels are visible."""
    factor = enlargement(picture.size)
    if factor == 1:
        return picture
    return picture.resize((factor * picture.width, factor * picture.height), resample=0)


def grid(images: Sequence[Tensor], columns: int) -> Image:
    """Lay images (3, H, W) in [0, 1], of one size, out in rows of ``columns``, with gaps between.

    Small images are enlarged.
    """
    from PIL import Image

    pictures = [to_pil(image) for image in images]
    gap = 2 * enlargement(pictures[0].size)
    pictures = [enlarge(picture) for picture in pictures]
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(picture, (column * (width + gap), row * (height + gap)))
    return sheet


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
