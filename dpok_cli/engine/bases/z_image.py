"""Z-Image (Z-Image Team 2025, arXiv 2511.22699): one sequence of image and text."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline
from torch import Tensor, nn

from dpok_cli.engine.bases.conditioning import Conditioning, Text
from dpok_cli.engine.bases.flow import FlowBase

#: Height and width, in pixels, that the pipeline draws by default.
PIXELS = 1024
#: Tokens of a prompt with its template, at the most, as in the call of the pipeline.
TOKENS = 512


class ZImage(FlowBase):
    """Its timesteps rise from 0 to 1, and its output is the velocity towards the image."""

    pipeline_class: ClassVar[Any] = ZImagePipeline

    @property
    def own_size(self) -> tuple[int, int]:
        own = getattr(self.pipeline, "default_sample_size", PIXELS // self.scale)
        return own, own

    @property
    def width(self) -> int:
        return self.network.dim

    @property
    def text_shape(self) -> tuple[int, int, int]:
        return TOKENS, self.network.config.cap_feat_dim, 0

    def unread(self, prompt: str) -> str:
        tokenizer, message = self.pipeline.tokenizer, [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False)
        before = text.partition(prompt)[0]  # of the template, which is read as well
        read = TOKENS - len(tokenizer(before).input_ids)
        return tokenizer.decode(tokenizer(prompt).input_ids[read:]).strip()

    def encode(self, prompts: Sequence[str], negative: str) -> tuple[Text, Text]:
        # The pipeline writes into the list.
        embeds, _ = self.pipeline.encode_prompt(
            [*prompts, negative], self.text_device, do_classifier_free_guidance=False
        )
        texts = [Text(each.unsqueeze(0)) for each in embeds]
        return Text.cat(texts[:-1]), texts[-1]

    def predict(
        self,
        network: nn.Module,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        latents, timesteps, text = self.inputs(latents, timesteps, conditioning, guidance_scale)
        outputs = network(
            list(latents.to(self.dtype).unsqueeze(2)),  # an image is a video of one frame
            (1000 - timesteps) / 1000,
            text.rows(),
        ).sample
        output = -torch.stack([each.float() for each in outputs]).squeeze(2)
        return self.combined(output, guidance_scale)

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, tokens: int) -> None:
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, mu=self.shift(tokens))

    def call_arguments(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        # c + w (c - u), so that 0 is no guidance.
        return super().call_arguments(max(0.0, guidance_scale - 1), negative)
