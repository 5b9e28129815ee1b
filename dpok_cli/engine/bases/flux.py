"""FLUX.1 (Black Forest Labs 2024): packed latents, and guidance as an input of the denoiser."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from dpok_cli.engine.bases.conditioning import Conditioning, Text
from dpok_cli.engine.bases.flow import FlowBase

#: Tokens of a prompt that T5 reads, at the most, as in the call of the pipeline.
T5_TOKENS = 512


class Flux(FlowBase):
    """T5's embeddings and CLIP's pooled vector; a patch of 2 x 2 latents is a token."""

    pipeline_class: ClassVar[Any] = FluxPipeline
    embeds_guidance = True

    @property
    def own_size(self) -> tuple[int, int]:
        return self.pipeline.default_sample_size, self.pipeline.default_sample_size

    @property
    def channels(self) -> int:
        return self.network.config.in_channels // 4

    @property
    def text_shape(self) -> tuple[int, int, int]:
        config = self.network.config
        return T5_TOKENS, config.joint_attention_dim, config.pooled_projection_dim

    @property
    def reader(self) -> tuple[Any, int]:
        return self.pipeline.tokenizer_2, T5_TOKENS

    def encode(self, prompts: Sequence[str], negative: str) -> tuple[Text, Text]:
        self.check_negative(negative)
        embeds, pooled, _ = self.pipeline.encode_prompt(
            [*prompts, ""], None, device=self.text_device
        )
        texts = Text(embeds, pooled)
        return texts[:-1], texts[-1:]

    def rows(self, guidance_scale: float) -> int:
        return 1

    def predict(
        self,
        network: nn.Module,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        count, channels, rows, columns = latents.shape
        text = conditioning.prompts.to(self.dtype, latents.device)
        guidance = None
        if self.network.config.guidance_embeds:
            guidance = torch.full((count,), guidance_scale, device=latents.device)
        output = network(
            hidden_states=pack(latents).to(self.dtype),
            # Rounded before the division, as the pipeline does: bf16 rounds 1000 s and s apart.
            timestep=timesteps.to(self.dtype) / 1000,
            guidance=guidance,
            encoder_hidden_states=text.embeds,
            pooled_projections=text.pooled,
            txt_ids=text.embeds.new_zeros(text.embeds.shape[1], 3),
            img_ids=self.pipeline._prepare_latent_image_ids(
                count, rows // 2, columns // 2, latents.device, self.dtype
            ),
        ).sample.float()
        return unpack(output, channels, rows, columns)


def pack(latents: Tensor) -> Tensor:
    """Return tokens (B, h w / 4, 4 C) of latents (B, C, h, w)."""
    patches = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h/2, 2, w/2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3, 5).flatten(1, 2)


def unpack(tokens: Tensor, channels: int, rows: int, columns: int) -> Tensor:
    """Return latents (B, C, h, w) of tokens: the inverse of `pack`."""
    patches = tokens.unflatten(2, (channels, 2, 2)).unflatten(1, (rows // 2, columns // 2))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
