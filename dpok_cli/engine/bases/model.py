"""The diffusion model: a pipeline as its family's base, its LoRA adapter, the frozen reference.

Policy and reference share their networks: the reference is the model with the adapter switched off.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dpok_cli.engine.bases.base import Base
from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.bases.denoiser import Denoiser
from dpok_cli.engine.bases.encoders import TextEncoders
from dpok_cli.engine.bases.families import FAMILIES, Family
from dpok_cli.engine.lora.adapter import Adapter

#: Pixels that are decoded or encoded at a time: 2 images of 512 x 512.
PIXELS = 2 * 512**2
#: The most prompts that are named as too long.
SHOWN = 5


def base_class(family: Family) -> type[Base]:
    """Return the class of a family's models, imported when it is needed."""
    module = import_module(f"dpok_cli.engine.bases.{family.module}")
    (found,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Base) and each.__module__ == module.__name__
    )
    return found


def base_of(pipeline: Any) -> Base:
    """Return a pipeline as its family's base."""
    family = FAMILIES[type(pipeline).__name__]
    return base_class(family)(pipeline, family)


class DiffusionModel:
    """A text-to-image model as the engine sees it: prompts to embeddings to latents to images."""

    def __init__(
        self,
        pipeline: Any,
        height: int = 0,
        width: int = 0,
        encoders: TextEncoders | None = None,
        offload: bool = False,
    ):
        """Wrap a pipeline; ``height`` and ``width`` are in pixels, 0 for the model's own size.

        ``encoders`` are by default those in the pipeline, which stay there. With ``offload`` the
        VAE is on the CPU while it is not used. Raises InputError for a size that the family cannot
        draw.
        """
        self.offload = offload
        self.encoders = encoders or TextEncoders(base_of(pipeline))
        self.pipeline, self.base = pipeline, self.encoders.base
        self.latent_shape = self.base.latent_shape(height, width)
        family = self.base.family
        self.adapter = Adapter(family.denoiser, self.base.network, family.targets, family.encoders)
        self.denoiser = Denoiser(self.base, self.base.network, self.adapter)

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        _, height, width = self.latent_shape
        return height * self.base.scale, width * self.base.scale

    def encode(self, prompts: Sequence[str], negative_prompt: str = "") -> Conditioning:
        """Return the embeddings of the B prompts and of the negative one, on the CPU.

        A text is encoded once. Raises InputError if the adapter is not of the text encoders.
        """
        text = self.adapter.text if self.adapter.enabled else {}
        return self.encoders.encode(prompts, negative_prompt, text, self.adapter.source)

    def unread(self, prompts: Sequence[str]) -> list[str]:
        """Return a line for each different prompt whose end no text encoder sees, but few."""
        ends = {
            prompt: end for prompt in dict.fromkeys(prompts) if (end := self.base.unread(prompt))
        }
        lines = [
            f"The text encoder does not see {end!r} at the end of {prompt!r}."
            for prompt, end in ends.items()
        ]
        more = [f"Nor does it see the ends of {len(lines) - SHOWN} more prompts."]
        return lines[:SHOWN] + (more if len(lines) > SHOWN else [])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), float32 in [0, 1], from latents (B, C, h, w).

        A value that is not finite is NaN.
        """
        with self._vae() as vae:
            latents = self.base.to_vae(latents).to(vae.dtype)
            images = [self.base.decode(chunk) for chunk in latents.split(self._chunk())]
        decoded = torch.cat(images).float() / 2 + 0.5
        return decoded.clamp(0, 1).where(decoded.isfinite(), torch.nan)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents, float32 (B, C, h, w), of images (B, 3, H, W) in [0, 1]: the means."""
        with self._vae() as vae:
            chunks = (images.to(vae.dtype) * 2 - 1).split(self._chunk())
            latents = [self.base.encode_images(chunk) for chunk in chunks]
        return self.base.from_vae(torch.cat(latents).float())

    def reference(self) -> AbstractContextManager[None]:
        """Within the block this is the reference model: the adapter is switched off."""
        return self.adapter.disabled()

    @contextmanager
    def _vae(self) -> Iterator[Any]:
        """Within the block the VAE is on the device, and computes in its own precision."""
        vae = self.pipeline.vae
        if self.offload:
            vae.to(self.device)
        try:
            with torch.autocast(self.device.type, enabled=False):
                yield vae
        finally:
            if self.offload:
                vae.to("cpu")

    def _chunk(self) -> int:
        """Return how many images go through the VAE at once; its memory grows with their size."""
        height, width = self.size
        return min(8, max(1, PIXELS // (height * width)))
