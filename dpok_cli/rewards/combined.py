"""The reward that the engine sees: a weighted sum of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.guard import plugin_code
from dpok_cli.rewards.offload import at_work
from dpok_cli.rewards.unread import unread_line

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of B images: the sum to maximise, and the raw score of each reward."""

    total: Tensor  # float32 (B,)
    raw: dict[str, Tensor]  # each float32 (B,), keyed by the reward's name


class WeightedReward:
    """The sum of ``weight * score``, where the score is negated if lower is better.

    ``names`` are the keys of ``Scores.raw``: the rewards' names, with ``NAME-2`` and so on for
    further instances of the same reward.
    """

    def __init__(self, parts: Sequence[tuple[RewardModel, float]], rest: bool = False):
        """With ``rest`` a reward's networks are on the CPU while it does not score."""
        self.rest = rest
        self.rewards: dict[str, tuple[RewardModel, float]] = {}
        for reward, weight in parts:
            key, number = reward.name, 1
            while key in self.rewards:
                number += 1
                key = f"{reward.name}-{number}"
            self.rewards[key] = (reward, weight)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.rewards)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each of ``names``, negated if lower is better."""
        return {
            key: weight if reward.higher_is_better else -weight
            for key, (reward, weight) in self.rewards.items()
        }

    @property
    def comparing(self) -> tuple[str, ...]:
        """Those of ``names`` whose rewards compare the images of a prompt with each other."""
        return tuple(key for key, (reward, _) in self.rewards.items() if reward.compares)

    def prepare(self) -> None:
        """Load every reward now; raises ``RewardError`` with the name of the one that fails."""
        for reward, _ in self.rewards.values():
            with at_work(reward, self.rest):
                reward.prepare()

    def unread(self, prompts: Sequence[str]) -> list[str]:
        """Return a line for each reward that does not read some prompts to their end.

        Loads the rewards; raises ``RewardError`` with the name of the one that fails.
        """
        lines = (_unread(key, reward, prompts) for key, (reward, _) in self.rewards.items())
        return [line for line in lines if line]

    def score(self, images: Tensor, prompts: list[str], *, grad: bool = False) -> Scores:
        """Score RGB float images (B, 3, H, W) in [0, 1] for their B prompts, on their device.

        Raises ``RewardError`` with the name of the reward that failed (see ``RewardModel.score``).
        """
        raw = {key: self.score_one(key, images, prompts, grad=grad) for key in self.names}
        return self.combine(raw)

    def score_alone(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Return the raw scores (B,) of the rewards that are not ``comparing``, by name.

        They do not depend on which images are scored together. Raises ``RewardError``.
        """
        alone = [key for key in self.names if key not in self.comparing]
        return {key: self.score_one(key, images, prompts) for key in alone}

    def score_one(
        self, key: str, images: Tensor, prompts: list[str], *, grad: bool = False
    ) -> Tensor:
        """Return the raw score (B,) of one of ``names``; raises ``RewardError``."""
        reward, _ = self.rewards[key]
        with at_work(reward, self.rest):
            return reward.score(images, prompts, grad=grad)

    def combine(self, raw: dict[str, Tensor]) -> Scores:
        """Return the weighted sum of raw scores, each (B,), of all ``names`` or some of them."""
        in_order = {key: raw[key] for key in self.names if key in raw}
        signed = [self.weights[key] * values for key, values in in_order.items()]
        return Scores(sum(signed[1:], signed[0]), in_order)


def _unread(key: str, reward: RewardModel, prompts: Sequence[str]) -> str | None:
    reward.prepare()
    with plugin_code(lambda error: RewardError(f"{key}: unread: {type(error).__name__}: {error}")):
        return unread_line(key, prompts, reward.unread)
