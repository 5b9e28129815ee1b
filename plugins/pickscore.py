"""The reward ``pickscore``: PickScore (Kirstain et al. 2023, arXiv 2305.01569)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpok_cli import hookimpl
from dpok_plugins.clip import Clip

if TYPE_CHECKING:
    from torch import Tensor


class PickScore(Clip):
    """PickScore: human preference for an image given its prompt, usually 18 to 24."""

    name = "pickscore"
    has_tiny = False

    @dataclass(frozen=True)
    class Options:
        """``model``: hub id or folder of a ``CLIPModel`` trained on preferences."""

        model: str = "yuvalkirstain/PickScore_v1"

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.clip.net.logit_scale.exp() * self.clip.cosine(images, prompts)


@hookimpl
def register_rewards(register):
    register(PickScore)
