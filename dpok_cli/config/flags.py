"""The flags of the commands, each declared once; those of a config are made from its fields."""

import inspect
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import typer

from dpok_cli import config
from dpok_cli.config import PRESETS, TINY, Config, SamplingConfig
from dpok_cli.errors import InputError
from dpok_cli.prompts.files import read_prompts

#: The help's panels, in their order there.
PANELS = (
    "Model",
    "Prompts",
    "Reward",
    "Sampling",
    "Rollout",
    "Images",
    "Objective",
    "Optimisation",
    "Adapter",
    "Run",
)

#: The most seeds of one command, against a slip of the finger.
MAX_SEEDS = 100_000


class Flag(NamedTuple):
    """What the help says of a config's field; its type and default come from the config."""

    panel: str
    help: str
    name: str = ""  # where it is not the field's
    metavar: str | None = None


FLAGS = {
    "model": Flag(
        "Model", "The pipeline: a Stable Diffusion v1/v2 hub id or folder.", metavar="ID|FOLDER"
    ),
    "precision": Flag("Model", "Of the model; log-probs and the KL are fp32 always."),
    "device": Flag("Model", "A torch device, as in cuda:0 or cpu."),
    "prompts": Flag("Prompts", "What to draw; may be given again.", "prompt", "TEXT"),
    "negative_prompt": Flag("Prompts", "What guidance leads away from."),
    "rewards": Flag(
        "Reward",
        "NAME[=WEIGHT][:KEY=VALUE,...]; may be given again, the sum counts. `dpok rewards` lists"
        " the names.",
        "reward",
        "SPEC",
    ),
    "num_inference_steps": Flag("Sampling", "Denoising steps of an image."),
    "guidance_scale": Flag("Sampling", "Classifier-free guidance; 1 or less is none."),
    "eta": Flag("Sampling", "Noise of a DDIM step: 0 is none, 1 as much as DDPM."),
    "height": Flag("Sampling", "Pixels; 0 is the model's own size."),
    "width": Flag("Sampling", "Pixels; 0 is the model's own size."),
    "sample_batch_size": Flag("Sampling", "Images denoised together: memory for speed."),
    "seeds": Flag("Sampling", "One image a prompt for each: 0-15, or 0,3,7."),
    "rounds": Flag("Rollout", "Rounds of sampling and updates."),
    "samples_per_round": Flag("Rollout", "Images drawn in a round (the paper's m)."),
    "group_size": Flag(
        "Rollout",
        "Images of a prompt that start from the same noise, with --advantage prompt, which leaves"
        " out what that noise alone brings.",
    ),
    "timestep_fraction": Flag("Rollout", "Share of each trajectory that is trained on."),
    "timestep_choice": Flag("Rollout", "Which share: the noisiest, or a random one."),
    "buffer_size": Flag("Rollout", "Transitions kept for later rounds; 0 is on policy."),
    "images": Flag("Images", "Images drawn from the model as it was (the paper's M)."),
    "dataset": Flag(
        "Images",
        "Where they are kept, for other runs too; or an image folder of your own, with its"
        " metadata.jsonl. By default in the run folder.",
        metavar="FOLDER",
    ),
    "kl_form": Flag(
        "Objective", "gamma shifts the rewards (kl-d), or weighs the KL to the model as it was."
    ),
    "gamma": Flag("Objective", "Of the KL form; 0 is plain reward-weighted fine-tuning."),
    "prompt_dropout": Flag("Objective", "Share of the examples trained on without their prompt."),
    "alpha": Flag("Objective", "Weight of the reward."),
    "beta": Flag("Objective", "Weight of the KL to the model as it was."),
    "kl": Flag("Objective", "The KL as the released code has it, or of the Gaussians."),
    "ratio_clip": Flag("Objective", "The policy ratio is clipped to 1 ± this."),
    "clip_form": Flag("Objective", "PPO's minimum, or the released code's bare clamp."),
    "advantage": Flag(
        "Objective", "The reward as it is, less a value function, or normalised by prompt."
    ),
    "advantage_clip": Flag("Objective", "Largest size of an advantage; 0 is any."),
    "updates_per_round": Flag("Optimisation", "Optimizer steps in a round."),
    "steps": Flag("Optimisation", "Optimizer steps."),
    "batch_size": Flag("Optimisation", "Examples in one backward pass, over all processes."),
    "gradient_accumulation": Flag("Optimisation", "Backward passes in an optimizer step."),
    "learning_rate": Flag("Optimisation", "AdamW's."),
    "lr_schedule": Flag("Optimisation", "What the learning rate does after the warm-up."),
    "lr_warmup_steps": Flag("Optimisation", "Optimizer steps until the learning rate is full."),
    "adam_beta1": Flag("Optimisation", "AdamW's first decay."),
    "adam_beta2": Flag("Optimisation", "AdamW's second decay."),
    "weight_decay": Flag("Optimisation", "AdamW's."),
    "max_grad_norm": Flag("Optimisation", "Gradients are scaled down to this norm."),
    "gradient_checkpointing": Flag("Optimisation", "Recompute activations: less memory."),
    "value_learning_rate": Flag("Optimisation", "Of the value function."),
    "value_updates": Flag("Optimisation", "Steps of the value function in a round."),
    "value_batch_size": Flag("Optimisation", "Transitions in one of them."),
    "lora_rank": Flag("Adapter", "Rank of the LoRA adapter."),
    "lora_alpha": Flag("Adapter", "LoRA's alpha; 0 is the rank, for a scale of 1."),
    "lora_targets": Flag(
        "Adapter", "Layers of the UNet that get one; may be given again.", metavar="LAYER"
    ),
    "init_adapter": Flag("Adapter", "One to start from, as a run's adapter/.", metavar="PATH"),
    "runs_dir": Flag("Run", "Where the run folders lie.", metavar="DIR"),
    "name": Flag("Run", "The run folder's name; by default the date and the command."),
    "seed": Flag("Run", "Of the noise and of everything else that is drawn."),
    "checkpoint_every": Flag(
        "Run", "Rounds (steps of train-sft) between checkpoints to --resume from; 0 is none."
    ),
    "keep": Flag("Run", "Checkpoints kept."),
    "log_every": Flag("Run", "Steps that a line of metrics is the mean of."),
    "sample_every": Flag("Run", "Rounds (steps of train-sft) between two sample grids; 0 is none."),
    "sample_count": Flag("Run", "Images in a sample grid."),
    "samples": Flag("Sampling", "Images a prompt and model, of the same seeds for every model."),
    "resamples": Flag("Run", "Bootstrap samples behind each interval."),
    "evaluation_samples": Flag("Run", "Images scored before and after; 0 is none."),
    "tracker": Flag("Run", "accelerate's name of one, as in tensorboard or wandb; '' is none."),
}

Preset = Annotated[
    str | None, typer.Option(help="Settings to start from.", rich_help_panel="Run", metavar="NAME")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML over the preset; a run's config.toml repeats it.",
        rich_help_panel="Run",
        metavar="FILE",
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the settings and stop.", rich_help_panel="Run")
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="Prompts, one a line, or .json with categories.",
        rich_help_panel="Prompts",
        metavar="FILE",
    ),
]
Category = Annotated[
    str | None,
    typer.Option(help="Only these prompts of a .json file.", rich_help_panel="Prompts"),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print results and errors only.", rich_help_panel="Run")
]
Resume = Annotated[
    str | None,
    typer.Option(
        help="Go on with a run, by its folder or name, or with the newest as 'latest'; its settings"
        " are taken.",
        rich_help_panel="Run",
        metavar="RUN",
    ),
]

Command = TypeVar("Command", bound=Callable[..., Any])


def config_flags(
    kind: type[SamplingConfig], without: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """Give a command a flag for each field of a config, in place of its ``**flags``.

    A flag that is not given is None, so that the preset or the config file has its say.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command).parameters.values()
        types = typing.get_type_hints(kind)
        parameters = [each for each in own if each.kind is not each.VAR_KEYWORD] + [
            _parameter(kind, field, types[field.name])
            for field in fields(kind)
            if field.name not in without
        ]
        parameters.sort(key=_order)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def resolve(
    kind: type[Config],
    flags: dict[str, Any],
    *,
    preset: str | None,
    file: Path | None,
    prompts_file: Path | None,
    category: str | None,
    under: dict[str, Any] | None = None,
) -> Config:
    """Put a command's config together; raises InputError.

    Flags that were not given (None or empty) leave the word to ``under``, then to the config file,
    then to the preset.
    """
    given = {key: value for key, value in flags.items() if value not in (None, [])}
    if prompts_file is not None:
        given["prompts"] = [*given.get("prompts", ()), *read_prompts(prompts_file, category)]
    elif category is not None:
        raise InputError("--category needs --prompts FILE.json, whose category it is.")
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in ((under or {}) | given).items()
    }
    return config.resolve(kind, preset or TINY, file, **values)


#: What may be another when a run is gone on with: how long it is, what it tells, and how much
#: memory it takes.
MAY_CHANGE = (
    "rounds steps checkpoint_every keep sample_every sample_count evaluation_samples tracker device"
    " sample_batch_size gradient_checkpointing runs_dir"
).split()
#: These may as long as their product, the examples of an update, stays what it is.
_PRODUCT = ("batch_size", "gradient_accumulation")


def resume(kind: type[Config], flags: dict[str, Any], config_file: Path) -> Config:
    """Read the settings of a run that is gone on with, and put the flags that may change over them.

    Raises InputError for a flag that would make it another run.
    """
    settings: Any = config.resolve(kind, TINY, config_file)
    if not settings.prompts:
        raise InputError(f"{config_file} names no prompts, so it is no run's: start a new run.")
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in flags.items()
        if value not in (None, [])
    }
    changed = kind(**(vars(settings) | given))
    sizes = [[getattr(each, key) for key in _PRODUCT] for each in (settings, changed)]
    free = {*MAY_CHANGE, *(_PRODUCT if prod(sizes[0]) == prod(sizes[1]) else ())}
    for key, value in given.items():
        if key not in free and value != getattr(settings, key):
            raise InputError(
                f"{key} = {value!r}: it is {getattr(settings, key)!r} in {config_file}, and cannot"
                f" change while a run is gone on with; only {', '.join(MAY_CHANGE[:-1])} can, and"
                f" {' and '.join(_PRODUCT)} if their product stays {prod(sizes[0])}."
            )
    return changed


def parse_seeds(text: str) -> list[int]:
    """Read seeds as in ``0-15`` or ``0,3,8-11``; raises InputError."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,99})\s*(?:-\s*(\d{1,99})\s*)?", part)
        if not match:
            raise InputError(f"--seeds {text!r}: write seeds as in 0-15 or 0,3,7.")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise InputError(f"--seeds {text!r} runs backwards: write {last}-{first}.")
        if last >= 2**63 or last - first >= MAX_SEEDS:
            raise InputError(f"--seeds {text!r}: at most {MAX_SEEDS} seeds below 2^63.")
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text!r} names a seed twice.")
    return seeds


def _parameter(kind: type[SamplingConfig], field: Field, of: Any) -> inspect.Parameter:
    flag = FLAGS[field.name]
    option = "--" + (flag.name or field.name).replace("_", "-")
    metavar = flag.metavar
    if typing.get_origin(of) is Literal:
        metavar, of = "|".join(typing.get_args(of)), str
    elif typing.get_origin(of) is tuple:
        of = list[str]
    info = typer.Option(
        option,
        help=flag.help,
        show_default=_default(kind, field) or False,
        rich_help_panel=flag.panel,
        metavar=metavar,
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[of | None, info],
    )


def _default(kind: type[SamplingConfig], field: Field) -> str:
    """Return the tiny preset's value, and the one of the paper's preset if it is another."""
    values = [field.default]
    paper = PRESETS[kind]["sd15"].get(field.name, field.default)
    if paper != field.default and not isinstance(paper, tuple | str):
        values.append(paper)
    texts = [" ".join(value) if isinstance(value, tuple) else str(value) for value in values]
    return "; sd15: ".join(texts).replace("False", "off")


def _order(parameter: inspect.Parameter) -> int:
    """Return the place of a flag's panel in the help; arguments come before all flags."""
    panel = parameter.annotation.__metadata__[0].rich_help_panel
    return PANELS.index(panel) if panel else -1
