"""Pictures for people: enlarged if small, in grids, and side by side. Without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from dpok_cli.rewards.images import to_pil as to_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

#: Pictures with a longer side below this are enlarged by a whole factor.
SMALL = 192
#: The longest side of a page of a grid, in pixels: of 4 x 4 images of 1024 pixels, or 8 x 8 of 512.
#: It is 53 MB in memory, and two side by side have 35 million pixels: Pillow warns from 89 million.
PAGE = 4200

Item = TypeVar("Item")


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
    return laid_out(in_rows(images, columns), to_pil)


def in_rows(items: Sequence[Item], columns: int) -> list[Sequence[Item]]:
    """Cut items into rows of ``columns``, of which the last may have fewer."""
    return [items[start : start + columns] for start in range(0, len(items), columns)]


def laid_out(rows: Sequence[Sequence[Item]], read: Callable[[Item], Image]) -> Image:
    """Lay out rows of pictures as `grid` does; ``read`` returns one, of which one is needed."""
    from PIL import Image

    sheet, width, height = Image.new("RGB", (0, 0)), 0, 0
    for row, items in enumerate(rows):
        for column, item in enumerate(items):
            picture = read(item)
            if not width:
                width, height, gap = cell(picture.size)
                across = max(map(len, rows))
                size = (across * width - gap, len(rows) * height - gap)
                sheet = Image.new("RGB", size, "white")
            sheet.paste(enlarge(picture), (column * width, row * height))
    return sheet


def room(size: tuple[int, int]) -> tuple[int, int]:
    """Return how many pictures of ``size`` pixels fit on a page: columns and rows, 1 at least."""
    wide, high, gap = cell(size)
    return max(1, (PAGE + gap) // wide), max(1, (PAGE + gap) // high)


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
