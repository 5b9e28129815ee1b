"""The reward ``aesthetic-v2.5``: Aesthetic Predictor V2.5, a head on SigLIP's image embedding.

Its package is under the AGPL; this code is based only on the shapes in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpok_cli import RewardModel, hookimpl
from dpok_cli.rewards.weights import find, read
from dpok_plugins.clip import encoder_files

if TYPE_CHECKING:
    from torch import Tensor


class AestheticV25(RewardModel):
    """Aesthetic Predictor V2.5: how an image looks (1 to 10; 5.5 is great), without its prompt."""

    name = "aesthetic-v2.5"
    differentiable = True
    batch_size = 16

    @dataclass(frozen=True)
    class Options:
        """``model``: folder or hub id of ``aesthetic_predictor_v2_5.pth``; ``encoder``: SigLIP."""

        model: str
        encoder: str = "google/siglip-so400m-patch14-384"

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        names = ("aesthetic_predictor_v2_5.safetensors", "aesthetic_predictor_v2_5.pth")
        head = find(self.options.model, *names, local_only=local_only)
        return head, *encoder_files(self.options.encoder, local_only)

    def load(self) -> None:
        from transformers import SiglipVisionModel

        from dpok_plugins.aesthetic_net import linear_head
        from dpok_plugins.clip_net import from_pretrained

        head, config, _ = self.files()
        net = from_pretrained(SiglipVisionModel, config.parent)
        self.head = linear_head(read(head), net.config.hidden_size).to(self.device)
        self.encoder = net.to(self.device)

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        from dpok_cli.rewards.images import resize
        from dpok_plugins.aesthetic_net import rate

        size = self.encoder.config.image_size
        pixels = resize(images, size, size) * 2 - 1  # the whole image, resized to a square
        return rate(self.head, self.encoder(pixels).pooler_output)


@hookimpl
def register_rewards(register):
    register(AestheticV25)
