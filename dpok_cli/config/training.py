"""Settings that both trainings share: rewards, the optimizer, the adapter and the run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dpok_cli.config.fields import Held, Rule, above, at_least, setting, within
from dpok_cli.config.sampling import SamplingConfig, sampling_settings
from dpok_cli.inputs import is_unicode

Schedule = Literal["constant", "linear", "cosine"]
#: accelerate's names.
Tracker = Literal[
    "",
    "tensorboard",
    "wandb",
    "mlflow",
    "comet_ml",
    "aim",
    "clearml",
    "dvclive",
    "swanlab",
    "trackio",
]


def is_folder_name(name: str) -> bool:
    """Whether a name can be that of one folder, on the file systems that are in use."""
    plain = Path(name).name == name and name not in {".", ".."}
    return plain and is_unicode(name) and len(name.encode()) <= 255


@dataclass(frozen=True)
class TrainingConfig(SamplingConfig):
    """Settings of every training.

    An optimizer step is on ``batch_size * gradient_accumulation`` examples, over all processes.
    """

    #: Whether updates predict with classifier-free guidance, as rollouts do.
    guided_updates: ClassVar[bool] = True

    rewards: tuple[str, ...] = setting(
        ("image-reward:model=tiny",),
        "Reward",
        "Reward to train on, as NAME[=WEIGHT][:KEY=VALUE,...]; repeat the flag for a weighted sum."
        " `dpok rewards` lists the names.",
        Rule("at least one reward", bool),
        flag="reward",
        metavar="SPEC",
    )

    batch_size: int = setting(
        32,
        "Optimisation",
        "Examples per forward and backward pass, over all processes.",
        at_least(1),
    )
    gradient_accumulation: int = setting(
        1, "Optimisation", "Forward and backward passes per optimizer step.", at_least(1)
    )
    auto_batch_size: bool = setting(
        False,
        "Optimisation",
        "Choose the examples per pass by the memory that is free; --batch-size times"
        " --gradient-accumulation is kept.",
        may_change=True,
    )
    learning_rate: float = setting(1e-3, "Optimisation", "AdamW learning rate.", above(0))
    lr_schedule: Schedule = setting(
        "constant", "Optimisation", "Learning-rate schedule after the warm-up."
    )
    lr_warmup_steps: int = setting(
        0, "Optimisation", "Optimizer steps of linear learning-rate warm-up.", at_least(0)
    )
    adam_beta1: float = setting(
        0.9, "Optimisation", "AdamW beta1 (decay of the gradient's mean).", within(0, 1, "[)")
    )
    adam_beta2: float = setting(
        0.999, "Optimisation", "AdamW beta2 (decay of its square's mean).", within(0, 1, "[)")
    )
    weight_decay: float = setting(1e-4, "Optimisation", "AdamW weight decay.", at_least(0))
    max_grad_norm: float = setting(
        1.0, "Optimisation", "Gradient clipping: largest global L2 norm.", above(0)
    )
    gradient_checkpointing: bool = setting(
        False,
        "Optimisation",
        "Recompute activations in the backward pass: less memory, more time.",
        may_change=True,
    )

    lora_rank: int = setting(8, "Adapter", "LoRA rank.", within(1, 1024))
    lora_alpha: float = setting(
        0.0, "Adapter", "LoRA alpha; 0 is the rank, for a scale of 1.", at_least(0)
    )
    lora_targets: tuple[str, ...] = setting(
        (),
        "Adapter",
        "Layers of the denoiser that get a LoRA; repeat the flag for several. By default the"
        " family's attention layers.",
        Rule("a layer's name", bool, each=True),
        metavar="LAYER",
    )
    #: The reference model does not include it. "" starts from a new adapter.
    init_adapter: str = setting(
        "",
        "Adapter",
        "Adapter to start from, such as adapter/ of a run.",
        metavar="PATH",
        path=True,
    )

    runs_dir: str = setting(
        "runs",
        "Run",
        "Folder that holds the run folders.",
        metavar="DIR",
        may_change=True,
        path=True,
    )
    name: str = setting(
        "",
        "Run",
        "Name of the run folder; by default the date, time and command.",
        Rule(
            "a plain folder name of 255 bytes at most (--runs-dir sets its parent)",
            is_folder_name,
        ),
    )
    checkpoint_every: int = setting(
        1,
        "Run",
        "Checkpoint interval, in rounds or steps; 0 writes none.",
        at_least(0),
        may_change=True,
    )
    keep: int = setting(
        2, "Run", "Number of latest checkpoints to keep.", at_least(1), may_change=True
    )
    sample_every: int = setting(
        5,
        "Run",
        "Sample grid interval, in rounds or steps; 0 draws none.",
        at_least(0),
        may_change=True,
    )
    #: Drawn from the same seeds each time.
    sample_count: int = setting(16, "Run", "Images per sample grid.", at_least(0), may_change=True)
    patience: int = setting(
        0,
        "Run",
        "End training after this many sample grids in a row without a rise in reward by a tenth of"
        " what was gained, and keep the adapter of the grid with the best reward; 0, or no sample"
        " grids, trains to the end.",
        at_least(0),
        may_change=True,
    )
    evaluation_samples: int = setting(
        32,
        "Run",
        "Images scored before and after training, in all, on fresh seeds; 0 skips this.",
        within(0, 100_000),
        may_change=True,
    )
    evaluation_steps: int = setting(
        0,
        "Sampling",
        "Denoising steps of sample grids and evaluations; 0 is as in training.",
        at_least(0),
        may_change=True,
    )
    evaluation_eta: float = setting(
        -1.0,
        "Sampling",
        "Noise of the sampler in sample grids and evaluations, as --eta; -1 is as in training.",
        Rule("in [0, 1], or -1", lambda eta: eta == -1 or 0 <= eta <= 1),
        may_change=True,
    )
    tracker: Tracker = setting(
        "tensorboard",
        "Run",
        "Tracker of metrics, sample grids and settings, such as tensorboard or wandb; '' is none.",
        metavar="NAME",
        may_change=True,
    )

    def held(self) -> list[Held]:
        grids = self.sample_count if self.sample_every else 0
        return [
            Held("evaluation_samples", images=min(self.evaluation_samples, self.sample_batch_size)),
            Held("sample_count", images=grids),
        ]

    def for_evaluation(self) -> SamplingConfig:
        """Return the settings that sample grids and evaluations draw with."""
        return SamplingConfig(
            **sampling_settings(vars(self)),
            seed=self.seed,
            device=self.device,
            offload=self.offload,
        )

    @property
    def method(self) -> str:
        """How the adapter is trained, in one phrase for its model card."""
        raise NotImplementedError
