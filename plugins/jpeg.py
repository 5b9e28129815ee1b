"""The rewards ``jpeg-compressibility`` and ``jpeg-incompressibility``: the file size.

The two rewards of DDPO (Black et al. 2023, arXiv 2305.13301). They are easy to optimise and to
check by hand, which makes them useful for trying out settings. They ignore the prompt.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from dpok_cli import RewardModel, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

QUALITY = 95


class JpegIncompressibility(RewardModel):
    """The image's size as a JPEG of quality 95, in kB (1000 bytes); higher is better."""

    name = "jpeg-incompressibility"
    needs_device = False

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        from dpok_cli.rewards.images import to_pil

        sizes = []
        for image in images:
            file = BytesIO()
            to_pil(image).save(file, "JPEG", quality=QUALITY)
            sizes.append(file.tell() / 1000)
        return torch.tensor(sizes, dtype=torch.float32)


class JpegCompressibility(JpegIncompressibility):
    """The image's size as a JPEG of quality 95, in kB (1000 bytes); lower is better."""

    name = "jpeg-compressibility"
    higher_is_better = False


@hookimpl
def register_rewards(register):
    register(JpegCompressibility)
    register(JpegIncompressibility)
