"""How different the images of one prompt are: by pixels, and by CLIP embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpok_cli.engine.evaluation.statistics import PairDistance

# Images of 8 bits that are converted to float32 at a time.
_BLOCK = 32


def pixel_distance(images: Tensor) -> float:
    """Return the mean over all pairs of the root-mean-square difference of their pixels.

    ``images`` are (N, 3, H, W), float in [0, 1] or uint8 in [0, 255], of which a block at a time is
    converted. The result is in [0, 1], and 0 for a single image.
    """
    if len(images) < 2:
        return 0.0
    blocks = [images] if images.is_floating_point() else images.split(_BLOCK)
    distances = []
    for number, block in enumerate(blocks):
        flat = _flat(block)
        distances.append(torch.pdist(flat))
        for other in blocks[number + 1 :]:
            between = torch.cdist(flat, _flat(other), compute_mode="donot_use_mm_for_euclid_dist")
            distances.append(between.flatten())
    return (torch.cat(distances) / images[0].numel() ** 0.5).mean().item()


def diversity(
    images: Tensor, embed: Callable[[Tensor], Tensor], batch_size: int | None = None
) -> float:
    """Return the mean over all pairs of the cosine distance of their embeddings, in [0, 2].

    ``images`` are (N, 3, H, W), float in [0, 1] or uint8 in [0, 255]; ``embed`` maps a batch of
    them, as float in [0, 1], to unit vectors (B, D). The result is 0 for a single image.
    """
    pairs = PairDistance()
    for batch in images.split(batch_size or len(images)):
        pairs.add(embed(_as_float(batch)).cpu().numpy())
    return pairs.mean() / 2


def _as_float(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images / 255


def _flat(images: Tensor) -> Tensor:
    return _as_float(images).flatten(1)
