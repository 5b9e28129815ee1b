"""Where a reward that compares the images of a prompt has no meaning, and is refused."""

from __future__ import annotations

from dpok_cli.errors import InputError
from dpok_cli.rewards.combined import WeightedReward

#: Why `refuse_comparing` refuses.
PER_IMAGE = "train-sft keeps a score for each image, which other images must not change"
PER_REQUEST = "the images of a prompt may arrive in several requests"


def refuse_comparing(reward: WeightedReward, why: str) -> None:
    """Raise InputError, with the reason, if one of these rewards compares images."""
    for name in reward.comparing:
        raise InputError(
            f"Reward {name!r} compares the images of a prompt with each other, and cannot be used"
            f" here: {why}."
        )
