"""Prompts and seeds to images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.rl.rollout import denoise
from dpok_cli.engine.sampling.step import Denoising
from dpok_cli.rewards.images import to_pil as to_pil

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One image and what it was drawn from."""

    prompt: str
    seed: int
    image: Tensor  # (3, H, W), float32 in [0, 1], on the CPU


@torch.no_grad()
def sample(
    model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], config: SamplingConfig
) -> Iterator[Sample]:
    """Draw an image for each prompt and seed, prompt by prompt.

    An image depends on its prompt, its seed and the settings, not on the batch it is drawn in.
    """
    denoising = Denoising.of(model.scheduler, config.num_inference_steps, config.eta, model.device)
    wanted = [(row, seed) for row in range(len(prompts)) for seed in seeds]
    conditioning = model.encode(prompts, config.negative_prompt)
    for start in range(0, len(wanted), config.sample_batch_size):
        chunk = wanted[start : start + config.sample_batch_size]
        rows = [row for row, _ in chunk]
        *_, last = denoise(
            model, denoising, conditioning[rows], [seed for _, seed in chunk], config.guidance_scale
        )
        for (row, seed), image in zip(chunk, model.decode(last.latents).cpu(), strict=True):
            yield Sample(prompts[row], seed, image)


def grid(images: Sequence[Tensor], columns: int) -> "Image":
    """Lay images (3, H, W) of one size out in rows of ``columns``, with gaps between them.

    Images under 192 pixels are enlarged by a whole factor, so that a person sees their pixels.
    """
    from PIL import Image

    pictures = [to_pil(image) for image in images]
    factor = max(1, 192 // max(pictures[0].size))
    width, height = (factor * side for side in pictures[0].size)
    gap = 2 * factor
    rows = -(-len(pictures) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (column * (width + gap), row * (height + gap)))
    return sheet
