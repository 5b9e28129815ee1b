"""CLIP's image embedding, for distances between images: from the reward ``clip``'s own files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpok_cli.config import TINY
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.manager import build

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Embed = Callable[["Tensor"], "Tensor"]


def image_embedding(
    model: str, device: str | torch.device, loaded: WeightedReward | None = None
) -> tuple[str, Embed] | None:
    """Return the CLIP's spec, and what makes unit vectors (B, D) of images (B, 3, H, W) in [0, 1].

    None if its weights are not on this machine. It is the tiny one for the ``model`` "tiny". One
    that is ``loaded`` already as a reward is used again.
    """
    spec = "clip:model=tiny" if model == TINY else "clip"
    try:
        (reward, _) = build([spec], device).rewards["clip"]
        if not all(file.exists() for file in reward.files(local_only=True)):
            return None
    except Exception:  # the plugin is not there, or not allowed, or its files are not
        return None
    for other, _ in loaded.rewards.values() if loaded else ():
        if type(other) is type(reward) and other.options == reward.options:
            reward = other
    reward.prepare()
    return spec, _embedder(reward)


def _embedder(reward: Any) -> Embed:
    net = reward.clip.net

    def embed(images: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import normalize

        from dpok_cli.rewards.images import clip_preprocess

        with torch.no_grad():
            pixels = clip_preprocess(images.to(reward.device), net.config.vision_config.image_size)
            return normalize(net.get_image_features(pixels).pooler_output, dim=-1)

    return embed
