"""What an objective declares to the loop, the view, the config and the docs. Without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from dpok_cli.config.fields import at_least, setting, within
from dpok_cli.engine.runs.measures import Measure

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from dpok_cli.engine.bases.conditioning import Conditioning
    from dpok_cli.engine.rl.advantage import RewardAdvantage
    from dpok_cli.engine.rl.rollout import Batch, Trajectories
    from dpok_cli.engine.sampling.sampler import Sampler


@dataclass(frozen=True)
class KLSettings:
    """The settings of an objective with a KL penalty."""

    beta: float = setting(
        0.3, "Objective", "KL penalty weight, towards the reference model.", at_least(0)
    )
    kl_fraction: float = setting(
        0.25,
        "Objective",
        "Fraction of an update's examples that the KL is taken of, each of which costs a pass of"
        " the reference model. With --beta 0 it is measured on one in eight at most.",
        within(0, 1, "(]"),
    )

    kl_target: float = setting(
        0.02,
        "Objective",
        "KL to stay near: the penalty's weight is doubled after a round with over 1.5 times as"
        " much, and halved, down to beta, after one with less than 1/1.5; 0, as a beta of 0, leaves"
        " it at beta.",
        at_least(0),
    )

    def kl_rows(self, examples: int) -> int:
        """Return how many of a batch's examples, which are in random order, the KL is taken of."""
        fraction = self.kl_fraction if self.beta else min(self.kl_fraction, 1 / 8)
        return max(1, round(fraction * examples))


class KLWeight:
    """beta, as it is now (Schulman et al. 2017, arXiv 1707.06347, Eq. 8: an adaptive penalty)."""

    #: It is at most this factor above beta. Below beta it would fall while the policy is near the
    #: reference model, and be too small for long when it is needed.
    MOST = 2.0**10

    def __init__(self, config: Any):
        self.beta, self.first, self.target = config.beta, config.beta, config.kl_target

    def follow(self, kl: float) -> dict[str, float]:
        """Take the KL of a round; returns what there is to log of it."""
        if not (self.target and self.first):
            return {}
        if kl > 1.5 * self.target:
            self.beta = min(2 * self.beta, self.first * self.MOST)
        elif kl < self.target / 1.5:
            self.beta = max(self.beta / 2, self.first)
        return {"beta": self.beta}

    def state_dict(self) -> dict[str, float]:
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.beta = state["beta"]


@dataclass(frozen=True)
class Loss:
    """The loss of a batch of B examples, and what was measured with it."""

    loss: Tensor  # scalar, with gradients
    measured: dict[str, Tensor]  # each (B,) or scalar, without


@dataclass(frozen=True)
class Measured:
    """What one batch of a round's updates measured, on this rank."""

    update: int  # which of the round's optimizer steps, from 0
    fresh: Tensor  # bool (B,): which examples are of this round's rollout
    loss: Tensor  # scalar
    values: dict[str, Tensor]  # those of `Loss.measured`


BETA = Measure("beta", "KL penalty weight after the round, with `--kl-target`.", form=".1e")


class Ranks(Protocol):
    """Reductions over all ranks."""

    def mean(self, values: Sequence[Tensor]) -> float:
        """Return the mean of the means of tensors, of any shapes."""
        ...

    def largest(self, value: float) -> float: ...


class Objective(ABC):
    """What the updates of a round minimise."""

    #: What --objective calls it.
    name: ClassVar[str]
    #: Its method in one phrase with the paper, for model cards.
    method: ClassVar[str]
    #: What it needs of a rollout: each "trajectory" with its log-probs, or "x_0" alone.
    needs: ClassVar[Literal["trajectory", "x_0"]]
    #: Its settings: a frozen dataclass whose fields are made by `config.fields.setting`. It becomes
    #: a part of `TrainRLConfig`, so two objectives may share a setting only by sharing a class.
    Settings: ClassVar[type]
    #: What `metrics` returns, in the order of the view.
    measures: ClassVar[tuple[Measure, ...]]
    #: Whether a round's updates may be shortened, for which the adapter before them is kept.
    may_shorten = False

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise InputError if the objective cannot be trained with a `TrainRLConfig`."""
        return

    @classmethod
    @abstractmethod
    def kind(cls) -> type[Batch]:
        """Return the class of its examples."""

    def __init__(
        self,
        config: Any,
        sampler: Sampler,
        conditioning: Conditioning,
        advantage: RewardAdvantage,
    ):
        """Take what `loss` needs; ``conditioning`` is of the run's prompts.

        Raises InputError if the sampler's steps leave nothing to train.
        """
        self.config, self.sampler = config, sampler
        self.conditioning, self.advantage = conditioning, advantage

    @property
    def kl_in_reward(self) -> float:
        """Weight of the log-ratio to the reference model that is taken off each image's reward.

        With 0 a rollout has none (`Trajectories.log_ratio`).
        """
        return 0.0

    @abstractmethod
    def choose(self, samples: int, random: Generator) -> Tensor:
        """Return which n parts of each of M samples to train on, (M, n) or (M, n, ...).

        It is equal on all ranks.
        """

    @abstractmethod
    def examples(
        self, trajectories: Trajectories, rewards: Tensor, advantages: Tensor, chosen: Tensor
    ) -> Batch:
        """Return the M * n examples of M trajectories, those of a sample in a row.

        ``rewards`` are (M,), ``advantages`` (M, 2): of the actions, and of the images
        (`RewardAdvantage.of_round`); ``chosen`` is what `choose` returned.
        """

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """Return the loss of a batch of examples."""

    @abstractmethod
    def metrics(self, measured: Sequence[Measured], ranks: Ranks) -> dict[str, float]:
        """Return `measures` over all batches of a round's updates, on all ranks.

        With "step_kept" among them, as where `may_shorten`, the loop keeps that part of the round's
        updates.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs of it."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        return


class KLObjective(Objective):
    """An objective with a KL penalty to the pre-trained model, whose weight it keeps."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.kl_weight = KLWeight(self.config)

    def state_dict(self) -> dict[str, Any]:
        return self.kl_weight.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.kl_weight.load_state_dict(state)
