"""The diffusion model: a Stable Diffusion pipeline, its LoRA adapter, and the frozen reference.

Policy and reference share their networks: the reference is the model with the adapter switched off.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from dpok_cli.engine.bases.denoiser import Conditioning, Denoiser
from dpok_cli.engine.bases.schedule import ddim
from dpok_cli.engine.lora.adapter import Adapter


class DiffusionModel:
    """A text-to-image model as the engine sees it: prompts to embeddings to latents to images."""

    def __init__(self, pipeline: StableDiffusionPipeline, height: int = 0, width: int = 0):
        """Wrap a pipeline; ``height`` and ``width`` are in pixels, 0 for the model's own size."""
        self.pipeline = pipeline
        self.adapter = Adapter(
            "unet", {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
        )
        self.denoiser = Denoiser(pipeline.unet, pipeline.unet.dtype, self.adapter)
        self.scheduler = ddim(pipeline.scheduler)
        scale, own = pipeline.vae_scale_factor, pipeline.unet.config.sample_size
        own_height, own_width = (own, own) if isinstance(own, int) else own
        self.latent_shape = (
            pipeline.unet.config.in_channels,
            height // scale or own_height,
            width // scale or own_width,
        )

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        _, height, width = self.latent_shape
        return height * self.pipeline.vae_scale_factor, width * self.pipeline.vae_scale_factor

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative_prompt: str = "") -> Conditioning:
        """Return the embeddings of the B prompts and of the negative one."""
        texts = [*prompts, negative_prompt]
        embeds, _ = self.pipeline.encode_prompt(texts, self.device, 1, False)
        reference = None
        if self.adapter.enabled and self.adapter.changes_text:
            with self.reference():
                reference = self.encode(prompts, negative_prompt)
        return Conditioning(embeds[:-1], embeds[-1:], reference)

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 8) -> Tensor:
        """Return images (B, 3, H, W), float32 in [0, 1], from latents (B, C, h, w).

        A value that is not finite is NaN.
        """
        vae = self.pipeline.vae
        latents = (latents / vae.config.scaling_factor).to(vae.dtype)
        with torch.autocast(self.device.type, enabled=False):
            images = [vae.decode(chunk).sample for chunk in latents.split(batch_size)]
        decoded = torch.cat(images).float() / 2 + 0.5
        return decoded.clamp(0, 1).where(decoded.isfinite(), torch.nan)

    @torch.no_grad()
    def encode_images(self, images: Tensor, batch_size: int = 8) -> Tensor:
        """Return latents, float32 (B, C, h, w), of images (B, 3, H, W) in [0, 1]: the means."""
        vae = self.pipeline.vae
        with torch.autocast(self.device.type, enabled=False):
            chunks = (images.to(vae.dtype) * 2 - 1).split(batch_size)
            latents = [vae.encode(chunk).latent_dist.mode() for chunk in chunks]
        return torch.cat(latents).float() * vae.config.scaling_factor

    def reference(self) -> AbstractContextManager[None]:
        """Within the block this is the reference model: the adapter is switched off."""
        return self.adapter.disabled()
