"""The reward ``image-reward``: human preference for an image given its prompt.

ImageReward (Xu et al. 2023, arXiv 2304.05977), read from its published checkpoint. The network is
in ``image_reward_net``, so that listing rewards does not import torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli import RewardModel, hookimpl
from dpok_cli.errors import RewardError
from dpok_cli.rewards.weights import find, read

if TYPE_CHECKING:
    from torch import Tensor

#: The published checkpoint was trained with its vocabulary of 30522 tokens.
BERT = "google-bert/bert-base-uncased"


class ImageReward(RewardModel):
    """ImageReward: human preference for an image given its prompt, about -2 to 2."""

    name = "image-reward"
    has_tiny = True
    differentiable = True
    batch_size = 16

    @dataclass(frozen=True)
    class Options:
        """``model``: hub id, folder with ``ImageReward.pt`` or ``.safetensors``, or ``tiny``."""

        model: str = "THUDM/ImageReward"

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        model = self.options.model
        checkpoint = find(
            model,
            "ImageReward.safetensors",
            "ImageReward.pt",
            tiny="image_reward",
            local_only=local_only,
        )
        config = find(model, "med_config.json", tiny="image_reward", local_only=local_only)
        vocab = checkpoint.with_name("vocab.txt")
        if not vocab.exists():
            advice = f"put its vocab.txt beside {checkpoint.name}"
            vocab = find(BERT, "vocab.txt", advice=advice, local_only=local_only)
        return checkpoint, config, vocab

    def load(self) -> None:
        from dpok_plugins import image_reward_net as net

        checkpoint, config, vocab = self.files()
        med_config = json.loads(config.read_text(encoding="utf-8"))
        self.net = net.from_published(read(checkpoint), med_config).float().eval()
        self.net.requires_grad_(False).to(self.device)
        self.tokenizer = net.tokenizer_from_vocab(vocab)
        size, rows = len(self.tokenizer), self.net.text.config.vocab_size
        if size not in (rows, rows - 2):  # published: plus [DEC] and [ENC], never used
            raise RewardError(
                f"the vocabulary {vocab} has {size} tokens but the checkpoint embeds {rows};"
                f" put its own vocab.txt beside {checkpoint.name}"
            )

    def unread(self, prompt: str) -> str:
        from dpok_cli.rewards.unread import unread_end
        from dpok_plugins.image_reward_net import MAX_TOKENS

        return unread_end(self.tokenizer, prompt, MAX_TOKENS)

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        from dpok_cli.rewards.images import clip_preprocess
        from dpok_plugins.image_reward_net import SCORE_MEAN, SCORE_STD, tokenize

        pixels = clip_preprocess(images, self.net.image_size)
        tokens = (part.to(self.device) for part in tokenize(self.tokenizer, prompts))
        return (self.net(pixels, *tokens) - SCORE_MEAN) / SCORE_STD


def __getattr__(name: str) -> Any:
    """Re-export the network's public names; torch is imported on first access."""
    if name not in ("ImageRewardNet", "from_published", "to_published", "tokenizer_from_vocab"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dpok_plugins import image_reward_net

    return getattr(image_reward_net, name)


@hookimpl
def register_rewards(register):
    register(ImageReward)
