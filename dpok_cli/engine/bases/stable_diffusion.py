"""Stable Diffusion v1 and v2 (Rombach et al. 2022, arXiv 2112.10752)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from dpok_cli.engine.bases.base import Base
from dpok_cli.engine.bases.conditioning import Conditioning, Text
from dpok_cli.engine.bases.families import Family
from dpok_cli.engine.bases.schedule import Schedule, ddim, ddim_arguments, ddim_schedule

#: Tokens of a prompt, for CLIP's text encoders.
TOKENS = 77


class StableDiffusion(Base):
    """A UNet on CLIP embeddings, sampled by DDIM with the pipeline's betas."""

    pipeline_class: ClassVar[Any] = StableDiffusionPipeline
    options: ClassVar[dict[str, Any]] = dict(
        safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )

    def __init__(self, pipeline: Any, family: Family):
        super().__init__(pipeline, family)
        self.scheduler = ddim(pipeline.scheduler)

    @property
    def text_shape(self) -> tuple[int, int, int]:
        return TOKENS, self.network.config.cross_attention_dim, 0

    def encode(self, prompts: Sequence[str], negative: str) -> tuple[Text, Text]:
        embeds, _ = self.pipeline.encode_prompt([*prompts, negative], self.text_device, 1, False)
        return Text(embeds[:-1]), Text(embeds[-1:])

    def predict(
        self,
        network: nn.Module,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        latents, timesteps, text = self.inputs(latents, timesteps, conditioning, guidance_scale)
        given = self.added(text, latents)
        output = network(latents.to(self.dtype), timesteps, text.embeds, **given).sample.float()
        return self.combined(output, guidance_scale)

    def added(self, text: Text, latents: Tensor) -> dict[str, Any]:
        """Return what the UNet is given besides latents, timesteps and embeddings."""
        return {}

    def kept(self, latent_shape: tuple[int, int, int]) -> int:
        """The maps of the last block, at the size of the latents."""
        config, (_, rows, columns) = self.network.config, latent_shape
        layers = config.layers_per_block
        layers = layers if isinstance(layers, int) else layers[0]
        return int((layers + 1) * config.block_out_channels[0] * rows * columns)

    def ddim_arguments(self) -> dict[str, Any]:
        return ddim_arguments(self.pipeline.scheduler)

    def schedule(self, num_inference_steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        return ddim_schedule(self.scheduler, num_inference_steps)

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        levels = self.scheduler.config.num_train_timesteps
        return torch.randint(levels, (count,), generator=generator)

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return noisy, self.scheduler.get_velocity(latents, noise, timesteps)
        return noisy, noise if kind == "epsilon" else latents
