"""Images and prompts as JSON for a reward in another process; images are base64 PNGs.

    {"prompts": ["a cat"], "images": ["iVBORw0..."]}  ->  {"scores": [0.25]}

A PNG has 8 bits per channel, so a remote reward sees the image as it would be saved.
"""

from __future__ import annotations

import base64
import json
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any

from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

NO_PNG = "an image is not a PNG in base64"

#: The most pixels that `unpack` accepts in total by default: 76 images of 512 x 512. Scoring takes
#: some 30 bytes for each, while a PNG may need none to speak of.
MAX_PIXELS = 20_000_000


class TooLarge(ValueError):
    """A request with more pixels than the server accepts; fewer images may do."""


def pack(images: Tensor, prompts: list[str]) -> bytes:
    """Encode RGB float images (B, 3, H, W) in [0, 1] and their B prompts."""
    return dumps({"prompts": prompts, "images": [png(image) for image in images]}).encode()


def png(image: Tensor) -> str:
    """Encode an RGB float image (3, H, W) in [0, 1] as a PNG in base64."""
    from dpok_cli.rewards.images import to_pil

    file = BytesIO()
    to_pil(image).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")


def unpack(body: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Tensor, list[str]]:
    """Decode the output of ``pack`` to images (B, 3, H, W), float32 in [0, 1], and B prompts.

    Raises ``TooLarge``, before it decodes an image, if all have more than ``max_pixels`` together,
    and ``ValueError`` with the reason for anything else that ``pack`` does not make.
    """
    from dpok_cli.inputs import as_shown
    from dpok_cli.rewards.images import from_pil

    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    prompts, texts = _strings(message, "prompts"), _strings(message, "images")
    if len(prompts) != len(texts):
        raise ValueError(f"got {len(texts)} images but {len(prompts)} prompts")
    if not texts:
        raise ValueError("there are no images")
    sizes = [_open(text).size for text in texts]
    pixels = sum(width * height for width, height in sizes)
    if pixels > max_pixels:
        raise TooLarge(
            f"the images have {pixels / 1e6:.3g} million pixels in total, and the server accepts"
            f" {max_pixels / 1e6:g} million (--max-megapixels)"
        )
    if len(set(sizes)) > 1:
        raise ValueError("the images differ in size")
    try:
        images = from_pil([as_shown(_open(text)) for text in texts])
    except Exception:  # Pillow raises many kinds for a damaged file
        raise ValueError(NO_PNG) from None
    return images, prompts


def _strings(message: Any, key: str) -> list[str]:
    values = message.get(key) if isinstance(message, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key!r} must be a list of strings")
    return values


def _open(text: str) -> Image:
    """Read a PNG's header; nothing is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we count ourselves
            return Image.open(BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
    except Image.DecompressionBombError as error:
        raise TooLarge(f"an image is too large: {error}") from None
    except Exception:
        raise ValueError(NO_PNG) from None
