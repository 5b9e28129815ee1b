"""The diffusion model: a pipeline as its family's base, its LoRA adapter, the frozen reference.

Policy and reference share their networks: the reference is the model with the adapter switched off.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dpok_cli.engine.bases.base import Base
from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.bases.denoiser import Denoiser
from dpok_cli.engine.bases.families import FAMILIES, Family
from dpok_cli.engine.lora.adapter import Adapter

#: Pixels that are decoded or encoded at a time: 8 images of 512 x 512.
PIXELS = 8 * 512**2


def base_class(family: Family) -> type[Base]:
    """Return the class of a family's models, imported when it is needed."""
    module = import_module(f"dpok_cli.engine.bases.{family.module}")
    (found,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Base) and each.__module__ == module.__name__
    )
    return found


class DiffusionModel:
    """A text-to-image model as the engine sees it: prompts to embeddings to latents to images."""

    def __init__(self, pipeline: Any, height: int = 0, width: int = 0):
        """Wrap a pipeline; ``height`` and ``width`` are in pixels, 0 for the model's own size.

        Raises InputError for a size that the family cannot draw.
        """
        family = FAMILIES[type(pipeline).__name__]
        self.pipeline, self.base = pipeline, base_class(family)(pipeline, family)
        self.latent_shape = self.base.latent_shape(height, width)
        self.adapter = Adapter(family.denoiser, self.base.networks(), family.targets)
        self.denoiser = Denoiser(self.base, self.base.network, self.adapter)

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        _, height, width = self.latent_shape
        return height * self.base.scale, width * self.base.scale

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative_prompt: str = "") -> Conditioning:
        """Return the embeddings of the B prompts and of the negative one."""
        texts, negative = self.base.encode(list(prompts), negative_prompt)
        reference = None
        if self.adapter.enabled and self.adapter.changes_text:
            with self.reference():
                reference = self.encode(prompts, negative_prompt)
        return Conditioning(texts, negative, reference)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), float32 in [0, 1], from latents (B, C, h, w).

        A value that is not finite is NaN.
        """
        vae = self.pipeline.vae
        latents = self.base.to_vae(latents).to(vae.dtype)
        with torch.autocast(self.device.type, enabled=False):
            images = [vae.decode(chunk).sample for chunk in latents.split(self._chunk())]
        decoded = torch.cat(images).float() / 2 + 0.5
        return decoded.clamp(0, 1).where(decoded.isfinite(), torch.nan)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents, float32 (B, C, h, w), of images (B, 3, H, W) in [0, 1]: the means."""
        vae = self.pipeline.vae
        with torch.autocast(self.device.type, enabled=False):
            chunks = (images.to(vae.dtype) * 2 - 1).split(self._chunk())
            latents = [vae.encode(chunk).latent_dist.mode() for chunk in chunks]
        return self.base.from_vae(torch.cat(latents).float())

    def reference(self) -> AbstractContextManager[None]:
        """Within the block this is the reference model: the adapter is switched off."""
        return self.adapter.disabled()

    def _chunk(self) -> int:
        """Return how many images go through the VAE at once; its memory grows with their size."""
        height, width = self.size
        return min(8, max(1, PIXELS // (height * width)))
