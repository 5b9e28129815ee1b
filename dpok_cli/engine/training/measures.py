"""What every training measures. Without torch."""

from collections.abc import Sequence
from typing import Any

from dpok_cli.engine.runs.measures import Measure, Record


def _skipped(records: Sequence[Record], config: Any) -> str | None:
    skipped = records[-1]["skipped"]
    if not skipped:
        return None
    return (
        f"{skipped:.0f} optimizer steps were skipped because the loss or its gradient was not"
        " finite: lower --learning-rate, or train in fp32."
    )


#: What the updater measures, in every training.
UPDATER = (
    Measure(
        "grad_norm",
        "Gradient norm before it is clipped.",
        "Steady. Far above `max_grad_norm`, only the gradient's direction counts.",
    ),
    Measure(
        "skipped",
        "Optimizer steps skipped so far, because the loss or its gradient was not finite. 20 in a"
        " row end the run.",
        "0. With fp16 a few at the start, while its gradient scaler settles.",
        advice=_skipped,
    ),
    Measure("learning_rate", "Learning rate after the newest optimizer step.", form=".1e"),
)


def _less_diverse(records: Sequence[Record], config: Any) -> str | None:
    kept = next((one[KEPT] for one in reversed(records) if KEPT in one), 1.0)
    if kept >= 0.5:
        return None
    return (
        f"The sample grid has {kept:.0%} of its first diversity: images of a prompt become alike."
        " Raise --beta, or train for fewer rounds."
    )


KEPT = "grid/diversity_kept"
#: What the sample grids measure, in every training; in the records of their rounds alone.
GRID = (
    Measure(
        "grid/reward",
        "Mean of the weighted reward over the sample grid, of the same seeds each time.",
        "Rises. `--patience` ends training by it.",
        label="grid reward",
    ),
    Measure(
        "grid/diversity",
        "Mean CLIP distance of images of one prompt in the sample grid; without a CLIP on this"
        " machine there is none.",
    ),
    Measure(
        KEPT,
        "Diversity over that of the first grid, before training.",
        "At least a half.",
        label="diversity",
        form=".0%",
        advice=_less_diverse,
    ),
    Measure("grid/best", "Round or step of the grid with the best reward so far."),
)
EVALUATIONS = Measure(
    "denoiser_evaluations",
    "Rows that went through the denoiser so far, over all processes. Guidance takes two a sample."
    " Sample grids and evaluations do not count.",
    "The cost to compare methods by.",
)
