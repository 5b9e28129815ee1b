"""Image preprocessing for rewards, on tensors and mostly differentiable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, 3, H, W) in [0, 1] like Pillow's ``BICUBIC``, except for its rounding.

    This means with antialiasing, first horizontally and then vertically, and clamped to [0, 1]
    after each pass.
    """
    for size in ((images.shape[-2], width), (height, width)):
        if images.shape[-2:] != size:
            images = functional.interpolate(images, size, mode="bicubic", antialias=True)
            images = images.clamp(0, 1)
    return images


def resize_short_side(images: Tensor, size: int) -> Tensor:
    """Resize (B, 3, H, W) in [0, 1] so that the shorter side has ``size`` pixels."""
    height, width = images.shape[-2:]
    short = min(height, width)
    return resize(images, int(size * height / short), int(size * width / short))


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Crop the central ``size`` x ``size`` pixels of (B, 3, H, W)."""
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def clip_normalise(images: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) in [0, 1] with CLIP's mean and standard deviation."""
    mean = torch.tensor(CLIP_MEAN, dtype=images.dtype, device=images.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, dtype=images.dtype, device=images.device).view(3, 1, 1)
    return (images - mean) / std


def clip_preprocess(images: Tensor, size: int) -> Tensor:
    """Resize, crop and normalise (B, 3, H, W) in [0, 1] to CLIP's input (B, 3, size, size)."""
    return clip_normalise(centre_crop(resize_short_side(images, size), size))


def to_pil(image: Tensor) -> Image:
    """Convert (3, H, W) in [0, 1] to an 8-bit image; not differentiable."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())
