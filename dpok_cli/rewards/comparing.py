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


def check_patience(reward: WeightedReward) -> None:
    """Raise InputError if no reward can say whether sample grids have become better."""
    if set(reward.comparing) == set(reward.names):
        raise InputError(
            f"--patience: the reward {reward.names[0]!r} compares images of one model with each"
            " other, which does not show what it has learned. Add a reward that scores each image,"
            " or leave --patience out."
        )
