"""Pictures on a page, as data URIs, so that the page is one file."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

from dpok_cli.engine.sampling.pictures import enlarge, enlargement

#: The longest side of a picture on a page, and of a thumbnail, in pixels.
MAX_SIDE, THUMBNAIL = 256, 128


def picture(file: Path, side: int = MAX_SIDE) -> str:
    """Return a picture as a data URI without metadata.

    A small one is kept without loss, and enlarged (`sampling.pictures.enlarge`) unless it is a
    thumbnail; one larger than ``side`` is scaled down.
    """
    from PIL import Image

    with Image.open(file) as image:
        pixels = image.convert("RGB")
    if enlargement(pixels.size) > 1:
        shown = enlarge(pixels) if side > THUMBNAIL else pixels
        return data_uri(_encoded(shown, "PNG", optimize=True), "png")
    pixels.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(_encoded(pixels, "JPEG", quality=85), "jpeg")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
