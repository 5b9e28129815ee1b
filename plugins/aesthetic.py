"""The reward ``aesthetic``: LAION's predictors of human ratings of an image's look.

Both use CLIP's image embedding: version 1 (github.com/LAION-AI/aesthetic-predictor) with one
linear layer, version 2 (github.com/christophschuhmann/improved-aesthetic-predictor) with five.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpok_cli import RewardModel, hookimpl
from dpok_cli.rewards.weights import find, read
from dpok_plugins.clip import VIT_L_14, encoder_files

if TYPE_CHECKING:
    from torch import Tensor

HEADS = (
    "aesthetic.safetensors",
    "sac+logos+ava1-l14-linearMSE.pth",  # version 2
    "aesthetic-model.pth",  # the same, in TRL's mirror on the hub
    "sa_0_4_vit_l_14_linear.pth",  # version 1
)


class Aesthetic(RewardModel):
    """LAION aesthetics: how an image looks, independent of its prompt, about 1 to 10."""

    name = "aesthetic"
    has_tiny = True
    differentiable = True
    batch_size = 32

    @dataclass(frozen=True)
    class Options:
        """``model``: hub id or folder of the head, or ``tiny``; ``encoder``: its CLIP."""

        model: str = "trl-lib/ddpo-aesthetic-predictor"
        encoder: str | None = None  # ViT-L/14, or the tiny CLIP with the tiny head

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        head, encoder = self.options.model, self.options.encoder
        if encoder is None:
            encoder = "tiny" if head == "tiny" else VIT_L_14
        head_file = find(head, *HEADS, tiny="aesthetic", local_only=local_only)
        return head_file, *encoder_files(encoder, local_only)

    def load(self) -> None:
        from transformers import CLIPVisionModelWithProjection

        from dpok_plugins.aesthetic_net import linear_head
        from dpok_plugins.clip_net import from_pretrained

        head, config, _ = self.files()
        net = from_pretrained(CLIPVisionModelWithProjection, config.parent)
        self.head = linear_head(read(head), net.config.projection_dim).to(self.device)
        self.encoder = net.to(self.device)

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        from dpok_cli.rewards.images import clip_preprocess
        from dpok_plugins.aesthetic_net import rate

        pixels = clip_preprocess(images, self.encoder.config.image_size)
        return rate(self.head, self.encoder(pixels).image_embeds)


@hookimpl
def register_rewards(register):
    register(Aesthetic)
