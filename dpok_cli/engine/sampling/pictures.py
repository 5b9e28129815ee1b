"""Pictures for people: enlarged if small, in grids, and side by side. Without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dpok_cli.rewards.images import to_pil as to_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

#: Pictures with a longer side below this are enlarged by a whole factor.
SMALL = 192
#: The most pixels of a picture of many images: Pillow warns of larger ones when it opens them.
LARGEST = 89_000_000


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
    return grid_of(images, len(images), columns)


def grid_of(images: Iterable[Tensor], count: int, columns: int) -> Image:
    """Lay out ``count`` images as `grid` does, of which only one at a time is needed."""
    from PIL import Image

    sheet, width, height, gap = Image.new("RGB", (0, 0)), 0, 0, 0
    for place, image in enumerate(images):
        picture = to_pil(image)
        if place == 0:
            width, height, gap = cell(picture.size)
            rows = -(-count // columns)
            size = (columns * width - gap, rows * height - gap)
            sheet = Image.new("RGB", size, "white")
        row, column = divmod(place, columns)
        sheet.paste(enlarge(picture), (column * width, row * height))
    return sheet


def cell(size: tuple[int, int]) -> tuple[int, int, int]:
    """Return what a picture of ``size`` takes in a grid: its width and height, and the gap.

    All in pixels; the gap is part of the width and of the height.
    """
    factor = enlargement(size)
    gap = 2 * factor
    return factor * size[0] + gap, factor * size[1] + gap, gap


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
