"""Rewards that rest on the CPU while they do not score, so that the device has room for others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dpok_cli.rewards.base import RewardModel

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def at_work(reward: RewardModel, rests: bool) -> Iterator[None]:
    """Within the block the networks of a reward that ``rests`` are on its device, then on the CPU.

    Those of another are where it put them.
    """
    if not rests:
        yield
        return
    for network in networks(reward):
        network.to(reward.device)
    try:
        yield
    finally:
        for network in networks(reward):
            network.to("cpu")


def networks(holder: Any, depth: int = 3) -> Iterator[nn.Module]:
    """Yield the networks among an object's attributes, and those of what it holds."""
    from torch import nn

    if isinstance(holder, nn.Module):
        yield holder
    elif depth and isinstance(holder, list | tuple | dict):
        for each in holder.values() if isinstance(holder, dict) else holder:
            yield from networks(each, depth - 1)
    elif depth and hasattr(holder, "__dict__") and not isinstance(holder, type):
        for each in vars(holder).values():
            yield from networks(each, depth - 1)
