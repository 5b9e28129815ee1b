"""CLIP's image embedding, for distances between images; the reward ``clip`` has its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpok_cli.config import TINY
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.manager import build, local_files
from dpok_cli.rewards.offload import at_work

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ImageEmbedding:
    """A map from images (B, 3, H, W), float in [0, 1], to unit vectors (B, D)."""

    spec: str  # of the CLIP
    embed: Callable[[Tensor], Tensor]


def image_embedding(
    model: str,
    device: str | torch.device,
    loaded: WeightedReward | None = None,
    rest: bool = False,
) -> ImageEmbedding | None:
    """Return the image embedding of a CLIP, or None if its weights are not on this machine.

    For the ``model`` "tiny" it is the bundled CLIP. A CLIP that is already a reward in ``loaded``
    is reused; another is on the CPU while it does not embed, if it is to ``rest``. Raises
    RewardError if the weights cannot be loaded.
    """
    spec = "clip:model=tiny" if model == TINY else "clip"
    if local_files(lambda: _clip(spec, device)) is None:
        return None
    reward = _clip(spec, device)
    if loaded:
        for other, _ in loaded.rewards.values():
            if type(other) is type(reward) and other.options == reward.options:
                reward, rest = other, loaded.rest
    with at_work(reward, rest):
        reward.prepare()
    return ImageEmbedding(spec, _embedder(reward, rest))


def _clip(spec: str, device: str | torch.device) -> RewardModel:
    reward, _ = build([spec], device).rewards["clip"]
    return reward


def _embedder(reward: Any, rests: bool) -> Callable[[Tensor], Tensor]:
    net = reward.clip.net

    def embed(images: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import normalize

        from dpok_cli.rewards.images import clip_preprocess

        with torch.no_grad(), at_work(reward, rests):
            size = net.config.vision_config.image_size
            pixels = clip_preprocess(images.to(reward.device), size, rounded=False)
            return normalize(net.get_image_features(pixels).pooler_output, dim=-1)

    return embed
