"""The reward ``clip``: CLIP similarity of image and prompt (Radford et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli import RewardModel, hookimpl
from dpok_cli.errors import RewardError
from dpok_cli.rewards.weights import find

if TYPE_CHECKING:
    from torch import Tensor

#: Its vocabulary of 49408 tokens is shared by all published CLIPs.
VIT_L_14 = "openai/clip-vit-large-patch14"


class Clip(RewardModel):
    """CLIP: the cosine of image and prompt, usually 0.1 to 0.4, times its scale."""

    name = "clip"
    has_tiny = True
    differentiable = True
    batch_size = 32

    @dataclass(frozen=True)
    class Options:
        """``model``: hub id or folder of a ``CLIPModel``, or ``tiny``; ``scale``: a factor."""

        model: str = VIT_L_14
        scale: float = 1.0

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        return clip_files(self.options.model, local_only)

    def load(self) -> None:
        from dpok_plugins import clip_net

        self.clip = clip_net.Clip.from_files(self.files(), self.device)

    def unread(self, prompt: str) -> str:
        return self.clip.unread(prompt)

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.options.scale * self.clip.cosine(images, prompts)


def clip_files(model: str, local_only: bool = False) -> tuple[Path, ...]:
    """Find ``config.json``, the weights, ``vocab.json`` and ``merges.txt`` of a CLIPModel."""
    return (*encoder_files(model, local_only), *tokenizer_files(model, local_only))


def encoder_files(model: str, local_only: bool = False) -> tuple[Path, ...]:
    """Find ``config.json`` and, in the same folder, the weights of a transformers model."""
    options: dict[str, Any] = {"tiny": "clip", "local_only": local_only}
    config = find(model, "config.json", **options)
    return config, find(model, "model.safetensors", "pytorch_model.bin", **options)


def tokenizer_files(model: str, local_only: bool = False) -> tuple[Path, ...]:
    """Find ``vocab.json`` and ``merges.txt`` of the model, or else of OpenAI's CLIP."""
    names = ("vocab.json", "merges.txt")
    try:
        return tuple(find(model, name, tiny="clip", local_only=local_only) for name in names)
    except RewardError:
        advice = "put its vocab.json and merges.txt into the model's folder"
        return tuple(find(VIT_L_14, name, advice=advice, local_only=local_only) for name in names)


@hookimpl
def register_rewards(register):
    register(Clip)
