"""Images and prompts as JSON for a reward in another process; images are base64 PNGs.

    {"prompts": ["a cat"], "images": ["iVBORw0..."]}  ->  {"scores": [0.25]}

A PNG has 8 bits per channel, so a remote reward sees the image as it would be saved.
"""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    from torch import Tensor

#: The maximum number of pixels that ``unpack`` accepts in total: 64 images of 1024 x 1024.
MAX_PIXELS = 2**26


def pack(images: Tensor, prompts: list[str]) -> bytes:
    """Encode RGB float images (B, 3, H, W) in [0, 1] and their B prompts."""
    from dpok_cli.rewards.images import to_pil

    pictures = []
    for image in images:
        file = BytesIO()
        to_pil(image).save(file, "PNG", compress_level=1)
        pictures.append(base64.b64encode(file.getvalue()).decode("ascii"))
    return dumps({"prompts": prompts, "images": pictures}).encode()


def unpack(body: bytes) -> tuple[Tensor, list[str]]:
    """Decode the output of ``pack``; raises ``ValueError`` with the reason for anything else."""
    import torch

    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    prompts, pictures = _strings(message, "prompts"), _strings(message, "images")
    if len(prompts) != len(pictures):
        raise ValueError(f"got {len(pictures)} images but {len(prompts)} prompts")
    if not pictures:
        raise ValueError("there are no images")
    images: list[Tensor] = []
    for text in pictures:
        images.append(_picture(text, MAX_PIXELS - sum(image[0].numel() for image in images)))
    if len({image.shape for image in images}) > 1:
        raise ValueError("the images differ in size")
    return torch.stack(images), prompts


def _strings(message: Any, key: str) -> list[str]:
    values = message.get(key) if isinstance(message, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key!r} must be a list of strings")
    return values


def _picture(text: str, most: int) -> Tensor:
    """Decode a PNG of at most ``most`` pixels to float32 (3, H, W); checks the size first."""
    import numpy as np
    import torch
    from PIL import Image

    try:
        picture = Image.open(BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
        fits = picture.width * picture.height <= most
        pixels = np.array(picture.convert("RGB")) if fits else None
    except Exception:  # Pillow raises many kinds for a damaged file
        raise ValueError("an image is not a PNG in base64") from None
    if pixels is None:
        raise ValueError(f"the images have more than {MAX_PIXELS} pixels in total")
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255
