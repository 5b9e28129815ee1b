"""Every setting of a run, its default and its range: frozen dataclasses, presets, TOML in and out.

A key of a config file is the name of the flag with underscores. Nothing here imports torch.
"""

import dataclasses
import math
import tomllib
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dpok_cli.errors import InputError, suggest

Precision = Literal["fp32", "fp16", "bf16"]
KLForm = Literal["epsilon", "gaussian"]
ClipForm = Literal["ppo", "clamp"]
AdvantageForm = Literal["reward", "value", "prompt"]
SFTForm = Literal["kl-d", "kl-o"]
TimestepChoice = Literal["noisiest", "random"]
Schedule = Literal["constant", "linear", "cosine"]

#: The trackers that accelerate knows; "" is none.
TRACKERS = ("tensorboard wandb mlflow comet_ml aim clearml dvclive swanlab trackio").split()

#: ``--model tiny`` is the bundled pipeline; everything else is a hub id or a folder.
TINY = "tiny"


def _must(holds: bool, key: str, value: object, what: str) -> None:
    if not holds:
        raise InputError(f"{key} = {value!r}: must be {what}.")


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn: which model, from which prompts, by which denoising steps."""

    model: str = TINY
    prompts: tuple[str, ...] = ()
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    eta: float = 1.0
    negative_prompt: str = ""
    #: Pixels a side; 0 is the model's own size.
    height: int = 0
    width: int = 0
    #: Images denoised together; no result depends on it beyond float rounding.
    sample_batch_size: int = 16
    precision: Precision = "fp32"
    #: A torch device; "auto" is what accelerate finds.
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self)
        _must(bool(self.model.strip()), "model", self.model, "a hub id, a folder or 'tiny'")
        for prompt in self.prompts:
            _must(bool(prompt.strip()), "prompts", prompt, "texts that say something")
        _must(
            self.num_inference_steps >= 1, "num_inference_steps", self.num_inference_steps, ">= 1"
        )
        _must(
            math.isfinite(self.guidance_scale) and self.guidance_scale >= 0,
            "guidance_scale",
            self.guidance_scale,
            "a finite number >= 0 (1 or less is no guidance)",
        )
        _must(0 <= self.eta <= 1, "eta", self.eta, "in [0, 1]")
        for key in ("height", "width"):
            value = getattr(self, key)
            _must(value >= 0 and value % 8 == 0, key, value, "a multiple of 8, or 0")
        _must(self.sample_batch_size >= 1, "sample_batch_size", self.sample_batch_size, ">= 1")
        _must(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2^63)")


@dataclass(frozen=True)
class TrainingConfig(SamplingConfig):
    """What every training has: rewards, the optimizer, the adapter and the run folder."""

    # Rewards, as NAME[=WEIGHT][:KEY=VALUE,...]
    rewards: tuple[str, ...] = ("image-reward:model=tiny",)

    # Optimisation: an optimizer step is on batch_size * gradient_accumulation examples, over all
    # processes together.
    batch_size: int = 32
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    lr_schedule: Schedule = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False

    # The adapter; lora_alpha 0 is lora_rank, so that the adapter's scale is 1.
    lora_rank: int = 8
    lora_alpha: float = 0.0
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    #: An adapter to start from; the reference stays the model without it. "" starts from none.
    init_adapter: str = ""

    # The run folder
    runs_dir: str = "runs"
    name: str = ""
    #: Rounds (or, in SFT, steps) between checkpoints, and how many of them are kept.
    checkpoint_every: int = 1
    keep: int = 2
    #: Rounds between sample grids, and images in one (drawn from the same seeds each time).
    sample_every: int = 5
    sample_count: int = 16
    #: Images of fresh seeds scored before and after training.
    evaluation_samples: int = 32
    #: accelerate's name of a tracker ("tensorboard", "wandb", …); "" is none.
    tracker: str = "tensorboard"

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(bool(self.rewards), "rewards", list(self.rewards), "at least one reward")
        for key in "batch_size gradient_accumulation lora_rank keep".split():
            _must(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        for key in (
            "checkpoint_every sample_every sample_count evaluation_samples lr_warmup_steps"
            " lora_alpha weight_decay"
        ).split():
            value = getattr(self, key)
            _must(math.isfinite(value) and value >= 0, key, value, "finite and >= 0")
        for key in ("learning_rate", "max_grad_norm"):
            value = getattr(self, key)
            _must(math.isfinite(value) and value > 0, key, value, "finite and > 0")
        for key in ("adam_beta1", "adam_beta2"):
            _must(0 <= getattr(self, key) < 1, key, getattr(self, key), "in [0, 1)")
        if self.tracker and self.tracker not in TRACKERS:
            advice = suggest(self.tracker, TRACKERS)
            raise InputError(f"tracker = {self.tracker!r}: accelerate has no such tracker.{advice}")
        _must(bool(self.lora_targets), "lora_targets", list(self.lora_targets), "layer names")
        _must(
            Path(self.name).name == self.name
            and self.name not in {".", ".."}
            and len(self.name.encode(errors="replace")) <= 255,
            "name",
            self.name,
            "a plain folder name of 255 bytes at most (--runs-dir says where it goes)",
        )


@dataclass(frozen=True)
class TrainRLConfig(TrainingConfig):
    """`dpok train-rl`: DPOK (Fan et al., NeurIPS 2023, arXiv 2305.16381)."""

    # Rollouts: a round draws `samples_per_round` images (the paper's m) and updates on them.
    rounds: int = 60
    samples_per_round: int = 24
    #: Samples of a prompt that start from the same x_T, for the advantage "prompt" to tell what x_T
    #: brought from what the actions did; 1 compares all of a prompt, each from an x_T of its own.
    group_size: int = 3
    #: Share of a trajectory's transitions that is trained on, and which: the noisiest, where it is
    #: decided what is shown, or some drawn anew for each trajectory.
    timestep_fraction: float = 0.5
    timestep_choice: TimestepChoice = "noisiest"
    #: Transitions kept; 0 keeps just the round's own (on policy).
    buffer_size: int = 0
    updates_per_round: int = 4

    # The objective
    alpha: float = 1.0
    beta: float = 0.01
    kl: KLForm = "epsilon"
    ratio_clip: float = 1e-2
    clip_form: ClipForm = "ppo"
    advantage: AdvantageForm = "prompt"
    #: Advantages are clipped to [-advantage_clip, advantage_clip]; 0 leaves them alone.
    advantage_clip: float = 5.0

    # Of TrainingConfig: fast at first, and to a rest at the end.
    batch_size: int = 60
    learning_rate: float = 3e-3
    lr_schedule: Schedule = "cosine"

    # The value function (advantage = "value")
    value_learning_rate: float = 1e-4
    value_updates: int = 5
    value_batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self.eta > 0, "eta", self.eta, "> 0 to train (without noise there is no policy)")
        for key in (
            "rounds samples_per_round group_size updates_per_round value_updates value_batch_size"
        ).split():
            _must(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        for key in "buffer_size beta advantage_clip".split():
            value = getattr(self, key)
            _must(math.isfinite(value) and value >= 0, key, value, "finite and >= 0")
        for key in "alpha ratio_clip value_learning_rate".split():
            value = getattr(self, key)
            _must(math.isfinite(value) and value > 0, key, value, "finite and > 0")
        _must(
            0 < self.timestep_fraction <= 1,
            "timestep_fraction",
            self.timestep_fraction,
            "in (0, 1]",
        )

    @property
    def transitions_per_round(self) -> int:
        """Transitions that a round adds to the buffer."""
        return self.samples_per_round * max(
            1, round(self.timestep_fraction * self.num_inference_steps)
        )


@dataclass(frozen=True)
class TrainSFTConfig(TrainingConfig):
    """`dpok train-sft`: the paper's baseline, reward-weighted supervised fine-tuning (Sec. 4.3)."""

    # The image set: drawn once from the reference (the paper's M images), or a person's own.
    images: int = 256
    #: The folder that keeps the set, or one of a person's own; "" is in the run folder.
    dataset: str = ""

    # The objective
    steps: int = 200
    kl_form: SFTForm = "kl-d"
    gamma: float = 0.0
    #: Share of the examples whose prompt is left out. Without any, the model with the prompt moves
    #: off from the one without, and guidance makes ever more of the gap between them.
    prompt_dropout: float = 0.2

    #: Steps that a line of metrics.jsonl is the mean of.
    log_every: int = 10

    # Of TrainingConfig, in steps
    checkpoint_every: int = 50
    sample_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in "images steps log_every".split():
            _must(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        _must(math.isfinite(self.gamma) and self.gamma >= 0, "gamma", self.gamma, "finite and >= 0")
        _must(0 <= self.prompt_dropout < 1, "prompt_dropout", self.prompt_dropout, "in [0, 1)")


@dataclass(frozen=True)
class SampleConfig(SamplingConfig):
    """`dpok sample`: one image for each prompt and seed."""

    prompts: tuple[str, ...] = ("a green colored rabbit",)
    seeds: str = "0-15"


@dataclass(frozen=True)
class EvaluateConfig(SamplingConfig):
    """`dpok evaluate`: models side by side on the same prompts and seeds."""

    #: Empty: those that the runs were trained on, and every other whose weights are here.
    rewards: tuple[str, ...] = ()
    #: Images a prompt and model; the paper's number.
    samples: int = 50
    kl: KLForm = "epsilon"
    #: Bootstrap samples behind each interval.
    resamples: int = 2000
    runs_dir: str = "runs"

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self.samples >= 1, "samples", self.samples, ">= 1")
        _must(self.resamples >= 100, "resamples", self.resamples, ">= 100")
        _must(self.seed < 2**62, "seed", self.seed, "below 2^62")


_PAPER: dict[str, Any] = dict(
    model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    rewards=("image-reward",),
    num_inference_steps=50,
    guidance_scale=7.5,
    eta=1.0,
    samples_per_round=10,
    group_size=1,
    rounds=2000,  # 20 000 samples
    timestep_fraction=1.0,
    buffer_size=1000,
    alpha=10.0,
    beta=0.01,
    kl="epsilon",
    ratio_clip=1e-4,
    clip_form="ppo",
    advantage="value",
    advantage_clip=0.0,
    updates_per_round=5,
    batch_size=4,
    gradient_accumulation=12,
    learning_rate=1e-5,
    lr_schedule="constant",
    max_grad_norm=0.1,
    value_learning_rate=1e-4,
    value_updates=5,
    value_batch_size=256,
    lora_rank=4,
    sample_batch_size=10,
    sample_every=50,
    checkpoint_every=10,
    weight_decay=1e-2,
)

_PAPER_SFT = dict(
    model=_PAPER["model"],
    rewards=_PAPER["rewards"],
    num_inference_steps=50,
    guidance_scale=7.5,
    eta=1.0,
    sample_batch_size=10,
    images=20_000,
    steps=8000,
    kl_form="kl-d",
    gamma=2.0,
    prompt_dropout=0.0,
    batch_size=16,
    gradient_accumulation=8,
    learning_rate=2e-5,
    weight_decay=1e-2,
    lora_rank=4,
    checkpoint_every=100,
    sample_every=500,
)

_PAPER_SAMPLING = {
    key: _PAPER[key] for key in ("model", "num_inference_steps", "guidance_scale", "eta")
}

PRESETS: dict[type, dict[str, dict[str, Any]]] = {
    TrainRLConfig: {
        "tiny": {},
        "sd15": _PAPER,
        "sd15-multi": _PAPER | dict(alpha=1000.0, beta=0.1),
    },
    TrainSFTConfig: {"tiny": {}, "sd15": _PAPER_SFT, "sd15-sft": _PAPER_SFT},
    SampleConfig: {"tiny": {}, "sd15": _PAPER_SAMPLING},
    EvaluateConfig: {"tiny": {}, "sd15": _PAPER_SAMPLING},
}


Config = typing.TypeVar("Config", bound=SamplingConfig)


def sampling_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a run's config says how its images were drawn, whatever the machine."""
    shared = {field.name for field in fields(SamplingConfig)} - {"seed", "device"}
    return {key: value for key, value in config.items() if key in shared}


def resolve(
    kind: type[Config], preset: str = TINY, file: Path | None = None, **flags: Any
) -> Config:
    """Put a config together: the preset, over it the file, over it the flags that are not None.

    Raises InputError for an unknown preset or key, a wrong type or a value out of range.
    """
    presets = PRESETS[kind]
    if preset not in presets:
        raise InputError(f"There is no preset {preset!r}.{suggest(preset, presets)}")
    values = presets[preset] | (_read(kind, file) if file else {})
    values |= {key: value for key, value in flags.items() if value is not None}
    return kind(**values)


def _read(kind: type[SamplingConfig], file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"Cannot read the config file {file}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, too many digits, too deep
        raise InputError(f"{file} is not TOML: {error}.") from error
    known = [item.name for item in fields(kind)]
    for key in values:
        if key not in known:
            raise InputError(f"{file}: there is no setting {key!r}.{suggest(key, known)}")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def to_toml(config: SamplingConfig) -> str:
    """Write a config as TOML that `resolve` reads back to an equal one."""
    import tomli_w

    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }
    return tomli_w.dumps(values)


def _check_types(config: SamplingConfig) -> None:
    """Make whole numbers floats where a float is asked for; refuse every other mismatch."""
    for key, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, key)
        if isinstance(value, int):
            _must(abs(value) < 2**63, key, value, "below 2^63")
        for text in value if isinstance(value, tuple) else (value,):
            _must("\0" not in str(text), key, text, "without the character NUL")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(config, key, float(value))
        elif typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            if value not in choices:
                raise InputError(
                    f"{key} = {value!r}: no such choice.{suggest(str(value), choices)}"
                )
        elif typing.get_origin(kind) is tuple:
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise InputError(f"{key} = {value!r}: must be a list of texts.")
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{key} = {value!r}: must be {_NOUN[kind]}.")


_NOUN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
