"""What a round of online RL measures: the loop's numbers and the objective's. Without torch."""

from collections.abc import Sequence
from typing import Any

from dpok_cli.engine.rl.objectives.base import Objective
from dpok_cli.engine.runs.measures import Measure, Record
from dpok_cli.engine.training.measures import EVALUATIONS, GRID, UPDATER

#: Rounds after which the reward should have risen, and rounds that are averaged to tell.
PATIENCE, WINDOW = 20, 5

VALUE_LOSS = Measure(
    "value_loss",
    'Mean squared error of the value function, with `advantage = "value"`.',
    "Falls below the variance of the reward.",
)


def _equal_rewards(records: Sequence[Record], config: Any) -> str | None:
    if records[-1]["reward/std"] >= 1e-6:
        return None
    return (
        "All images of the round got the same reward, so there is nothing to learn from: raise"
        " --samples-per-round, or choose another reward."
    )


def _no_rise(records: Sequence[Record], config: Any) -> str | None:
    if len(records) < PATIENCE:
        return None
    first, now = (
        sum(record["reward/mean"] for record in part) / WINDOW
        for part in (records[:WINDOW], records[-WINDOW:])
    )
    spread = records[0]["reward/std"]
    if now < first - 0.5 * spread:
        return "The reward has fallen since the start: lower --learning-rate."
    if now < first + 0.05 * spread:
        return "The reward does not rise: raise --learning-rate or --samples-per-round."
    return None


_ROLLOUT = (
    Measure("round", "Rounds so far."),
    Measure("samples", "Images drawn so far."),
    Measure(
        "reward/mean",
        "Mean of the weighted reward over the round's images.",
        "Rises.",
        label="reward",
        plotted=True,
        spread="reward/std",
        advice=_no_rise,
    ),
    Measure(
        "reward/std",
        "Its standard deviation.",
        "Above 0: equal rewards leave nothing to learn from.",
        advice=_equal_rewards,
    ),
    Measure("reward/NAME", "Mean of each reward, unweighted."),
)
_COST = (
    Measure(
        "seconds/rollout", "Seconds of sampling; rewards that score in parallel are hidden in it."
    ),
    Measure("seconds/reward", "Seconds spent waiting for rewards after sampling."),
    Measure("seconds/update", "Seconds of the updates."),
    EVALUATIONS,
)


def rl_measures(objective: type[Objective]) -> tuple[Measure, ...]:
    """Return what the rounds of training with an objective measure, in the order of a record."""
    return (*_ROLLOUT, VALUE_LOSS, *objective.measures, *UPDATER, *_COST, *GRID)
