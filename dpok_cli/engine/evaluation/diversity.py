"""How different the images of one prompt are: by pixels, and by CLIP embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from dpok_cli.engine.evaluation.statistics import PairDistance

# Images that are converted to float32 at a time.
_BLOCK = 32
# Bytes of images that a pile holds in memory.
_MEMORY = 2**26


class Pile:
    """Images (3, H, W) of one size and type, of which a few are in memory and the rest on the disk.

    A slice of it is a tensor of those images.
    """

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(_MEMORY)  # noqa: SIM115 - closed on exit
        self._count, self._like = 0, torch.empty(0, device="meta")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self._count)
        size = self._like.nbytes
        self._file.seek(start * size)
        data = bytearray(self._file.read((stop - start) * size))
        return torch.frombuffer(data, dtype=self._like.dtype).view(-1, *self._like.shape)

    def add(self, images: Tensor) -> None:
        """Add images (B, 3, H, W), which are on the CPU."""
        self._like = images[0].to("meta")
        self._file.seek(0, os.SEEK_END)
        self._file.write(images.contiguous().numpy().tobytes())
        self._count += len(images)

    def clear(self) -> None:
        """Take all images away, for those of the next prompt."""
        self._file.seek(0)
        self._file.truncate()
        self._count = 0


def pixel_distance(images: Tensor | Pile) -> float:
    """Return the mean over all pairs of the root-mean-square difference of their pixels.

    ``images`` are (N, 3, H, W), float in [0, 1] or uint8 in [0, 255], of which a block at a time is
    converted. The result is in [0, 1], and 0 for a single image.
    """
    if len(images) < 2:
        return 0.0
    distances = []
    for start in range(0, len(images), _BLOCK):
        flat = _flat(images[start : start + _BLOCK])
        distances.append(torch.pdist(flat))
        for after in range(start + _BLOCK, len(images), _BLOCK):
            other = _flat(images[after : after + _BLOCK])
            between = torch.cdist(flat, other, compute_mode="donot_use_mm_for_euclid_dist")
            distances.append(between.flatten())
    return (torch.cat(distances) / images[:1].numel() ** 0.5).mean().item()


def diversity(
    images: Tensor | Pile, embed: Callable[[Tensor], Tensor], batch_size: int | None = None
) -> float:
    """Return the mean over all pairs of the cosine distance of their embeddings, in [0, 2].

    ``images`` are (N, 3, H, W), float in [0, 1] or uint8 in [0, 255]; ``embed`` maps a batch of
    them, as float in [0, 1], to unit vectors (B, D). The result is 0 for a single image.
    """
    pairs, size = PairDistance(), batch_size or len(images)
    for start in range(0, len(images), size):
        pairs.add(embed(_as_float(images[start : start + size])).cpu().numpy())
    return pairs.mean() / 2


def _as_float(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images / 255


def _flat(images: Tensor) -> Tensor:
    return _as_float(images).flatten(1)
