"""What supervised fine-tuning measures. Without torch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dpok_cli.engine.runs.measures import Measure, Record
from dpok_cli.engine.training.measures import EVALUATIONS, GRID, UPDATER


def _too_few(records: Sequence[Record], config: Any) -> str | None:
    counting = 1 - records[-1]["weight/zero"] / records[-1]["samples"]
    if counting >= 0.05:
        return None
    return (
        f"Only {counting:.1%} of the images have a weight above 0, so training will overfit to"
        " them: raise --gamma, or --images."
    )


#: What the view calls measures of the updater.
LABELS = {"grad_norm": "grad norm", "learning_rate": "lr"}

#: In the order of a record; all but those of the image set are means since the record before.
SFT_MEASURES = (
    Measure("step", "Optimizer steps so far."),
    Measure("samples", "Images in the set."),
    Measure("reward/mean", "Mean of the weighted reward over the image set.", "Constant."),
    Measure("reward/std", "Its standard deviation.", "Constant."),
    Measure("reward/NAME", "Mean of each reward over the image set, unweighted.", "Constant."),
    Measure("weight/mean", "Mean weight of the images."),
    Measure(
        "weight/zero",
        "Images whose weight is cut to zero.",
        "At most 19 in 20.",
        advice=_too_few,
    ),
    Measure(
        "loss",
        "The loss.",
        "Falls a little. Noise and timesteps make it jump.",
        label="loss",
        form=".4f",
        plotted=True,
    ),
    Measure("denoising_error", "Mean e of the images trained on, unweighted."),
    Measure(
        "kl",
        r"\|f_theta - f_pre\|^2 per latent element, over the images trained on.",
        "Grows slowly.",
        label="kl",
        form=".2e",
        plotted=True,
    ),
    *(replace(one, label=LABELS.get(one.key, "")) for one in UPDATER),
    Measure("seconds/update", "Seconds of the steps."),
    EVALUATIONS,
    *GRID,
)
