"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from dpok_cli.engine.bases.conditioning import Text
from dpok_cli.engine.bases.stable_diffusion import TOKENS, StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """Two CLIP encoders, one of which has a pooled vector as well, and the image's size."""

    pipeline_class: ClassVar[Any] = StableDiffusionXLPipeline
    options: ClassVar[dict[str, Any]] = dict(add_watermarker=False)

    @property
    def text_shape(self) -> tuple[int, int, int]:
        config = self.network.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return TOKENS, config.cross_attention_dim, pooled

    def encode(self, prompts: Sequence[str], negative: str) -> tuple[Text, Text]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            [*prompts], device=self.text_device, do_classifier_free_guidance=False
        )
        # Without a negative prompt its embeddings are zeros in most checkpoints, not those of "".
        _, without, _, without_pooled = self.pipeline.encode_prompt(
            "", device=self.text_device, negative_prompt=negative or None
        )
        return Text(embeds, pooled), Text(without, without_pooled)

    def added(self, text: Text, latents: Tensor) -> dict[str, Any]:
        height, width = (side * self.scale for side in latents.shape[-2:])
        # Original size, crop and target size: a whole image of this size.
        sizes = text.embeds.new_tensor([[height, width, 0, 0, height, width]])
        conditions = {"text_embeds": text.pooled, "time_ids": sizes.expand(len(text), -1)}
        return {"added_cond_kwargs": conditions}
