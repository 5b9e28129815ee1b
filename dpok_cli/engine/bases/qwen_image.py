"""Qwen-Image (Wu et al. 2025, arXiv 2508.02324): packed latents, and a VAE for videos."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline
from torch import Tensor, nn

from dpok_cli.engine.bases.conditioning import Conditioning, Text
from dpok_cli.engine.bases.flow import FlowBase
from dpok_cli.engine.bases.flux import pack, unpack
from dpok_cli.errors import InputError

#: Tokens of a prompt, at the most, as in the call of the pipeline.
TOKENS = 512


class QwenImage(FlowBase):
    """Embeddings as long as the prompt; guidance keeps the length of the prompt's velocity."""

    pipeline_class: ClassVar[Any] = QwenImagePipeline
    has_unused_layers = True  # the text of the last block

    @property
    def own_size(self) -> tuple[int, int]:
        return self.pipeline.default_sample_size, self.pipeline.default_sample_size

    @property
    def channels(self) -> int:
        return self.network.config.in_channels // 4

    @property
    def vae_channels(self) -> int:
        return self.pipeline.vae.config.z_dim

    @property
    def text_shape(self) -> tuple[int, int, int]:
        return TOKENS, self.network.config.joint_attention_dim, 0

    def check_vae(self) -> None:
        if not self.pipeline.vae.config.get("latents_mean"):
            raise InputError(
                f"The model's VAE has no latents_mean, so it is not one of {self.family.name}."
            )

    def unread(self, prompt: str) -> str:
        pipeline, tokenizer = self.pipeline, self.pipeline.tokenizer
        before = pipeline.prompt_template_encode.partition("{}")[0]
        # The pipeline leaves out as many tokens as the template has in the published tokenizer.
        read = pipeline.prompt_template_encode_start_idx + TOKENS - len(tokenizer(before).input_ids)
        return tokenizer.decode(tokenizer(prompt).input_ids[read:]).strip()

    def encode(self, prompts: Sequence[str], negative: str) -> tuple[Text, Text]:
        embeds, mask = self.pipeline.encode_prompt(
            [*prompts, negative or " "], self.text_device, max_sequence_length=TOKENS
        )
        texts = Text(embeds, mask=None if mask is None else mask.bool())
        return texts[:-1], texts[-1:]

    def predict(
        self,
        network: nn.Module,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        _, channels, rows, columns = latents.shape
        latents, timesteps, text = self.inputs(latents, timesteps, conditioning, guidance_scale)
        output = network(
            hidden_states=pack(latents).to(self.dtype),
            # Rounded before the division, as the pipeline does: bf16 rounds 1000 s and s apart.
            timestep=timesteps.to(self.dtype) / 1000,
            encoder_hidden_states=text.embeds,
            encoder_hidden_states_mask=text.mask,
            img_shapes=[[(1, rows // 2, columns // 2)]] * len(latents),
        ).sample.float()
        return unpack(self.combined(output, guidance_scale), channels, rows, columns)

    def combined(self, output: Tensor, guidance_scale: float) -> Tensor:
        combined = super().combined(output, guidance_scale)
        if self.rows(guidance_scale) == 1:
            return combined
        _, with_prompt = output.chunk(2)
        return _as_long_as(with_prompt, combined)

    def call_arguments(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        return {"true_cfg_scale": guidance_scale, "negative_prompt": negative or " "}

    # ---------------------------------------------------------------------------------- the VAE

    def to_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._channels(latents)
        return latents * std + mean

    def from_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._channels(latents)
        return (latents - mean) / std

    def _channels(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Return the mean and the standard deviation of each channel, (C, 1, 1)."""
        config = self.pipeline.vae.config
        return tuple(
            latents.new_tensor(values).view(-1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )

    def decode(self, latents: Tensor) -> Tensor:
        """An image is a video of one frame."""
        return super().decode(latents.unsqueeze(2)).squeeze(2)

    def encode_images(self, images: Tensor) -> Tensor:
        return super().encode_images(images.unsqueeze(2)).squeeze(2)


def _as_long_as(prompted: Tensor, tokens: Tensor) -> Tensor:
    """Return tokens (B, N, D) with the norms that those with the prompt alone have."""
    return tokens * (torch.norm(prompted, dim=-1, keepdim=True) / tokens.norm(dim=-1, keepdim=True))
