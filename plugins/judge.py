"""The reward ``judge``: whether an image of the tiny world shows what its prompt asks for.

The held-out ground truth of the tiny world, as GenEval is for real images: use it for evaluation
only. The network is in ``judge_net``, so that listing rewards does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli import RewardModel, hookimpl
from dpok_cli.errors import RewardError
from dpok_cli.rewards.weights import find
from dpok_cli.tiny.words import Scene, parse

if TYPE_CHECKING:
    from torch import Tensor


class Judge(RewardModel):
    """1 if the image shows what a prompt of the tiny world asks for and nothing else, 0 if not."""

    name = "judge"
    has_tiny = True
    range = (0.0, 1.0)
    batch_size = 64

    @dataclass(frozen=True)
    class Options:
        """``model``: a folder with ``config.json`` and ``model.safetensors``, or ``tiny``."""

        model: str = "tiny"

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        names = ("config.json", "model.safetensors")
        model = self.options.model
        return tuple(find(model, name, tiny="judge", local_only=local_only) for name in names)

    def load(self) -> None:
        from dpok_plugins.judge_net import JudgeNet

        config, _ = self.files()
        self.net = JudgeNet.from_folder(config.parent).requires_grad_(False).to(self.device)

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        from dpok_plugins.judge_net import scenes

        asked = [_asked(prompt) for prompt in prompts]
        seen = scenes(self.net(images))
        right = [scene.shows(wanted) for scene, wanted in zip(seen, asked, strict=True)]
        return torch.tensor(right, dtype=torch.float32, device=self.device)


def _asked(prompt: str) -> Scene:
    scene = parse(prompt)
    if scene is None:
        raise RewardError(
            f"{prompt!r} is not a prompt of the tiny world; ask for one or two kinds of"
            " object, with a count, colour or place, as in 'Two red cats on the beach.'"
        )
    return scene


def __getattr__(name: str) -> Any:
    """Re-export the network's public names; torch is imported on first access."""
    if name not in ("JudgeNet", "Views", "scenes"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dpok_plugins import judge_net

    return getattr(judge_net, name)


@hookimpl
def register_rewards(register):
    register(Judge)
