"""Settings.

In: flags, TOML files and presets.
Out: one frozen, checked config for a command.

Nothing here imports torch.
"""

from dpok_cli.config.evaluation import EvaluateConfig
from dpok_cli.config.rl import (
    AdvantageForm,
    RLConfig,
    TimestepChoice,
)
from dpok_cli.config.sampling import (
    TINY,
    KLForm,
    Precision,
    SampleConfig,
    SamplingConfig,
    sampling_settings,
)
from dpok_cli.config.sft import SFTForm, TrainSFTConfig
from dpok_cli.config.sources import Config, presets, resolve, to_toml
from dpok_cli.config.training import Schedule, Tracker, TrainingConfig

__all__ = [
    "TINY",
    "AdvantageForm",
    "Config",
    "EvaluateConfig",
    "KLForm",
    "Precision",
    "RLConfig",
    "SFTForm",
    "SampleConfig",
    "SamplingConfig",
    "Schedule",
    "TimestepChoice",
    "Tracker",
    "TrainSFTConfig",
    "TrainingConfig",
    "presets",
    "resolve",
    "sampling_settings",
    "to_toml",
]
