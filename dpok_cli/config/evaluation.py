"""Settings of `dpok evaluate`."""

from dataclasses import dataclass
from typing import ClassVar

from dpok_cli.config.fields import Rule, changed, setting, within
from dpok_cli.config.sampling import KLForm, SamplingConfig
from dpok_cli.config.training import TrainingConfig


@dataclass(frozen=True)
class EvaluateConfig(SamplingConfig):
    """`dpok evaluate`: models side by side on the same prompts and seeds."""

    command: ClassVar[str] = "evaluate"

    #: Empty: those that the runs were trained on, and all others whose weights are on this machine.
    rewards: tuple[str, ...] = changed(
        TrainingConfig,
        "rewards",
        (),
        help="Reward to score with, as NAME[:KEY=VALUE,...]; repeat the flag for several. By"
        " default those trained on and all others whose weights are on this machine.",
        rule=None,
    )
    samples: int = setting(
        50,
        "Sampling",
        "Images per prompt and model, on the same seeds for each.",
        within(1, 100_000),
    )
    kl: KLForm = setting(
        "epsilon",
        "Objective",
        "KL to the base that is measured: on the predicted noise, or between the Gaussians.",
    )
    resamples: int = setting(
        2000, "Run", "Bootstrap resamples per confidence interval.", within(100, 1_000_000)
    )
    runs_dir: str = changed(TrainingConfig, "runs_dir", "runs")
    seed: int = changed(
        SamplingConfig, "seed", 0, rule=Rule("in [0, 2^62)", lambda value: 0 <= value < 2**62)
    )
