"""Shared by the aesthetic rewards: a head of linear layers on unit image embeddings."""

import re
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import normalize

from dpok_cli.errors import RewardError

_KEY = re.compile(r"(?:.*?(\d+)\.)?(weight|bias)")


def linear_head(weights: Mapping[str, Tensor], width: int) -> nn.Sequential:
    """Build the head of a checkpoint: linear layers, ordered by the numbers in their keys.

    The published heads have only dropout between the layers, which explains the gaps in the
    numbers. A single layer may have no number. Raises ``RewardError`` if the layers do not map
    embeddings of ``width`` to one score.
    """
    parts: dict[int, dict[str, Tensor]] = {}
    for key, value in weights.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise RewardError(f"the aesthetic head has the unknown key {key}")
        parts.setdefault(int(match[1] or 0), {})[match[2]] = value.float()
    layers = [parts[number] for number in sorted(parts)]
    if lacking := [number for number, part in parts.items() if len(part) < 2]:
        raise RewardError(f"layer {lacking[0]} of the aesthetic head lacks its weight or bias")
    shapes = [tuple(layer["weight"].shape) for layer in layers]  # (outputs, inputs) each
    inputs = [width, *(shape[0] for shape in shapes)]
    if [shape[::-1] for shape in shapes] != list(pairwise(inputs)) or inputs[-1] != 1:
        raise RewardError(
            f"the aesthetic head's layers ({', '.join(map(str, shapes)) or 'none'}) do not map the"
            f" image encoder's width {width} to 1; use the encoder that it was trained on"
        )
    head = nn.Sequential(*(nn.Linear(inner, outer) for outer, inner in shapes))
    for linear, layer in zip(head, layers, strict=True):
        linear.load_state_dict(layer)
    return head.eval().requires_grad_(False)


def rate(head: nn.Sequential, embeds: Tensor) -> Tensor:
    """Score image embeddings (B, D) of any length; returns (B,)."""
    scores: Tensor = head(normalize(embeds, dim=-1))
    return scores.squeeze(-1)
