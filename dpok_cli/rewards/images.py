"""Image preprocessing for rewards: as published where no gradient is needed, else on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, 3, H, W) in [0, 1] with Pillow's ``BICUBIC``, or like it for gradients.

    Without gradients to the images Pillow does it, on 8 bits, as in the packages that publish the
    rewards. With gradients it is done on tensors in the same way, except for Pillow's rounding:
    with antialiasing, first horizontally and then vertically, and clamped to [0, 1] after each
    pass. Images of that size already are returned as they are.
    """
    if images.shape[-2:] == (height, width):
        return images
    if not (images.requires_grad and torch.is_grad_enabled()):
        return _resize_8_bits(images, height, width)
    for size in ((images.shape[-2], width), (height, width)):
        if images.shape[-2:] != size:
            images = functional.interpolate(images, size, mode="bicubic", antialias=True)
            images = images.clamp(0, 1)
    return images


def _resize_8_bits(images: Tensor, height: int, width: int) -> Tensor:
    from PIL.Image import Resampling

    resized = [to_pil(image).resize((width, height), Resampling.BICUBIC) for image in images]
    return from_pil(resized).to(images)


def resize_short_side(images: Tensor, size: int) -> Tensor:
    """Resize (B, 3, H, W) in [0, 1] so that the shorter side has ``size`` pixels."""
    height, width = images.shape[-2:]
    short = min(height, width)
    return resize(images, int(size * height / short), int(size * width / short))


def centre_crop(images: Tensor, size: int, rounded: bool = True) -> Tensor:
    """Crop the central ``size`` x ``size`` pixels of (B, 3, H, W).

    A margin of half a pixel is rounded to even, as torchvision does, or if not ``rounded`` down,
    as transformers does.
    """
    margins = [(side - size) / 2 for side in images.shape[-2:]]
    top, left = (round(margin) if rounded else int(margin) for margin in margins)
    return images[..., top : top + size, left : left + size]


def clip_normalise(images: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) in [0, 1] with CLIP's mean and standard deviation."""
    mean = torch.tensor(CLIP_MEAN, dtype=images.dtype, device=images.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, dtype=images.dtype, device=images.device).view(3, 1, 1)
    return (images - mean) / std


def clip_preprocess(images: Tensor, size: int, rounded: bool = True) -> Tensor:
    """Resize, crop and normalise (B, 3, H, W) in [0, 1] to CLIP's input (B, 3, size, size).

    This is what CLIP's own package does; if not ``rounded``, what transformers' processor does.
    """
    return clip_normalise(centre_crop(resize_short_side(images, size), size, rounded))


def to_pil(image: Tensor) -> Image:
    """Convert (3, H, W) in [0, 1] to an 8-bit image; not differentiable."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def from_pil(images: Sequence[Image]) -> Tensor:
    """Convert B images in RGB of one size to float32 (B, 3, H, W) in [0, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
