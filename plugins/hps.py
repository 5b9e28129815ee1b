"""The reward ``hps``: Human Preference Score v2.1 (Wu et al. 2023, arXiv 2306.09341)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpok_cli import RewardModel, hookimpl
from dpok_cli.errors import RewardError
from dpok_cli.rewards.weights import find, read
from dpok_plugins.clip import tokenizer_files

if TYPE_CHECKING:
    from torch import Tensor


class HPS(RewardModel):
    """HPS v2.1: human preference for an image given its prompt, usually 0.2 to 0.35."""

    name = "hps"
    range = (-1.0, 1.0)
    differentiable = True
    batch_size = 16

    @dataclass(frozen=True)
    class Options:
        """``model``: hub id, or folder with ``HPS_v2.1_compressed.pt``."""

        model: str = "xswu/HPSv2"

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        names = ("HPS_v2.1_compressed.safetensors", "HPS_v2.1_compressed.pt")
        checkpoint = find(self.options.model, *names, local_only=local_only)
        return checkpoint, *tokenizer_files(self.options.model, local_only)

    def load(self) -> None:
        from dpok_plugins.clip_net import Clip, tokenizer_from_files
        from dpok_plugins.hps_net import from_open_clip

        checkpoint, vocab, merges = self.files()
        weights = read(checkpoint)
        if checkpoint.suffix == ".pt":
            if "state_dict" not in weights:
                raise RewardError(f"{checkpoint} has no state_dict; it is not an HPS v2 checkpoint")
            weights = weights["state_dict"]  # type: ignore[assignment]
        net = from_open_clip(weights).to(self.device)
        self.clip = Clip(net, tokenizer_from_files(vocab, merges))

    def unread(self, prompt: str) -> str:
        return self.clip.unread(prompt)

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        from dpok_plugins.hps_net import preprocess

        size = self.clip.net.config.vision_config.image_size
        return self.clip.cosine_of_pixels(preprocess(images, size), prompts)


@hookimpl
def register_rewards(register):
    register(HPS)
