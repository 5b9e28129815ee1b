"""What the sample grids say of a training: reward and diversity, the best adapter, when to end."""

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from dpok_cli.engine.distributed import run_on_main
from dpok_cli.engine.evaluation.diversity import diversity
from dpok_cli.engine.sampling.sampler import Sample
from dpok_cli.engine.training.outputs import Metrics
from dpok_cli.engine.training.session import Session
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.embedding import image_embedding

#: Part of the reward gained so far that a grid has to add to be better.
GAIN = 0.1


def is_worth_it(reward: float, level: float, first: float) -> bool:
    """Return whether a grid's mean reward is a rise above the ``level`` that patience counts from.

    That is by more than GAIN of what training had gained since the ``first`` grid: a rise that is
    small beside it is not worth the rounds, nor the diversity that they cost.
    """
    return reward > level + GAIN * max(0.0, level - first)


class Watch:
    """The measures of the sample grids so far, and the adapter of the one with the best reward.

    Rewards that compare images are left out: among those of one model a win rate is the same on
    average, whatever it has learned.
    """

    def __init__(self, session: Session, reward: WeightedReward):
        self.session, self.reward = session, reward
        self.patience, self.size = session.config.patience, session.config.sample_batch_size
        if self.patience and session.config.sample_every and not self._alone:
            session.warn(
                "--patience has no effect: the reward compares images of one model with each other,"
                " which does not show what it has learned."
            )
        self._embedding: Any = None
        self.number = -1  # the newest grid's round or step
        self.first = math.inf  # the reward of the first grid, before training
        self.best, self.best_number = -math.inf, 0  # the reward, and the grid's number
        self.level = -math.inf  # the reward of the last grid that was worth its rounds
        self.since = 0  # grids after that one
        self.first_diversity = 0.0  # of the first grid, before training
        self.weights: dict[str, Tensor] = {}  # of the best adapter, with patience alone

    @property
    def _alone(self) -> bool:
        """Whether a reward scores each image by itself."""
        return set(self.reward.comparing) < set(self.reward.names)

    @property
    def is_over(self) -> bool:
        """Whether `patience` grids in a row were not worth their rounds."""
        return 0 < self.patience <= self.since

    def see(self, number: int, samples: Sequence[Sample]) -> Metrics:
        """Measure a grid's ``samples``, drawn on rank 0 after round or step ``number``.

        Returns what the next record is to have, the same on all ranks; nothing without samples.
        Raises RewardError, with nothing changed, if the reward fails.
        """
        found = run_on_main(lambda: self._measure(samples), self.session.accelerator)
        if not found:
            return {}
        self.number = number
        kept = found.get("grid/diversity", 0.0)
        self.first_diversity = self.first_diversity or kept
        if self.first_diversity:
            found["grid/diversity_kept"] = kept / self.first_diversity
        if "grid/reward" not in found:  # all rewards compare images of one model
            return found
        reward = found["grid/reward"]
        if not number:  # the model before training, which is no result
            self.first = reward
            return found
        if is_worth_it(reward, self.level, self.first):
            self.level, self.since = reward, 0
        else:
            self.since += 1
        if reward > self.best:
            self.best, self.best_number = reward, number
            if self.patience:
                self.weights = self.session.model.adapter.copy()
        return found | {"grid/best": self.best_number}

    def _measure(self, samples: Sequence[Sample]) -> Metrics:
        if not samples:
            return {}
        device = self.session.model.device
        totals: list[float] = []
        spreads: list[float] = []
        for start in range(0, len(samples) if self._alone else 0, self.size):
            batch = samples[start : start + self.size]
            images = torch.stack([one.image for one in batch]).to(device)
            alone = self.reward.score_alone(images, [one.prompt for one in batch])
            totals += self.reward.combine(alone).total.tolist()
        if self._embedding is None:
            model = self.session.config.model
            self._embedding = image_embedding(model, device, self.reward, rest=True) or False
        for _, of_prompt in groupby(samples, lambda one: one.prompt):
            images = torch.stack([one.image for one in of_prompt])
            if self._embedding and len(images) > 1:
                spreads.append(diversity(images, self._embedding.embed, self.size))
        found = {"grid/reward": mean(totals)} if totals else {}
        return found | ({"grid/diversity": mean(spreads)} if spreads else {})

    def state_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "first": self.first,
            "best": self.best,
            "best_number": self.best_number,
            "level": self.level,
            "since": self.since,
            "first_diversity": self.first_diversity,
            "weights": self.weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]
        self.first, self.best = state["first"], state["best"]
        self.best_number = state["best_number"]
        self.level = state.get("level", self.best)  # they were one in older checkpoints
        self.since, self.first_diversity = state["since"], state["first_diversity"]
        device = self.session.model.device
        self.weights = {name: each.to(device) for name, each in state["weights"].items()}
