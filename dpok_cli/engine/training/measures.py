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
EVALUATIONS = Measure(
    "denoiser_evaluations",
    "Rows that went through the denoiser so far, over all processes. Guidance takes two a sample."
    " Sample grids and evaluations do not count.",
    "The cost to compare methods by.",
)
