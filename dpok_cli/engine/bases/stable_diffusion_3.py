"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from dpok_cli.engine.bases.conditioning import Conditioning, Text
from dpok_cli.engine.bases.flow import FlowBase

#: Tokens of a prompt that CLIP's encoders and T5 read, at the most, as in the call of the pipeline.
CLIP_TOKENS, T5_TOKENS = 77, 256


class StableDiffusion3(FlowBase):
    """Two CLIP encoders and T5, whose padding is attended to."""

    pipeline_class: ClassVar[Any] = StableDiffusion3Pipeline

    @property
    def text_shape(self) -> tuple[int, int, int]:
        config = self.network.config
        tokens = CLIP_TOKENS + T5_TOKENS
        return tokens, config.joint_attention_dim, config.pooled_projection_dim

    @property
    def reader(self) -> tuple[Any, int]:
        t5 = self.pipeline.tokenizer_3
        return (t5, T5_TOKENS) if t5 else super().reader

    def encode(self, prompts: Sequence[str], negative: str) -> tuple[Text, Text]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            [*prompts, negative],
            None,
            None,
            device=self.text_device,
            do_classifier_free_guidance=False,
        )
        return Text(embeds[:-1], pooled[:-1]), Text(embeds[-1:], pooled[-1:])

    def predict(
        self,
        network: nn.Module,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        latents, timesteps, text = self.inputs(latents, timesteps, conditioning, guidance_scale)
        output = network(
            hidden_states=latents.to(self.dtype),
            timestep=timesteps,
            encoder_hidden_states=text.embeds,
            pooled_projections=text.pooled,
        ).sample.float()
        return self.combined(output, guidance_scale)

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, tokens: int) -> None:
        # Without sigmas its ends are shifted a second time, as its pipeline does.
        dynamic = scheduler.config.use_dynamic_shifting
        scheduler.set_timesteps(num_inference_steps, mu=self.shift(tokens) if dynamic else None)
