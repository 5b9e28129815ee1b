"""`dpok train-sft`: reward-weighted supervised fine-tuning, and how it goes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli.commands import _training
from dpok_cli.config import TrainSFTConfig
from dpok_cli.config import flags as options
from dpok_cli.display.training import Record, SFTView

if TYPE_CHECKING:
    from dpok_cli.engine.bases.model import DiffusionModel
    from dpok_cli.engine.runs.folder import RunFolder
    from dpok_cli.rewards.combined import WeightedReward


@options.config_flags(TrainSFTConfig)
def train_sft(
    *,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    print_config: options.PrintConfig = False,
    prompts_file: options.PromptsFile = None,
    category: options.Category = None,
    resume: options.Resume = None,
    quiet: options.Quiet = False,
    **flags: Any,
) -> None:
    """Fine-tune a text-to-image model with LoRA on images of its own, weighted by their reward.

    The images are drawn once from the model as it was, scored and kept; --dataset takes them for
    another run. Presets: tiny (the bundled model, minutes on a CPU; its values are the defaults
    below) and sd15-sft, or sd15 (the paper's run on Stable Diffusion v1.5).

    Example: dpok train-sft --prompt "a green colored rabbit"
    """
    sources = _training.Sources(preset, config, prompts_file, category, resume)
    _training.command(METHOD, sources, flags, print_config, quiet)


def with_dataset(settings: TrainSFTConfig) -> TrainSFTConfig:
    """Check the dataset's folder, and take the prompts of a person's own where none was given.

    Those are what sample grids and evaluations draw; all of the folder's are trained on.
    """
    if not settings.dataset:
        return settings
    from dpok_cli.engine.sft.dataset.imagefolder import check_dataset, is_own, own_entries

    folder = Path(settings.dataset).expanduser().resolve()
    check_dataset(folder)
    prompts = settings.prompts
    if not prompts and is_own(folder):
        texts = dict.fromkeys(entry["text"] for entry in own_entries(folder))
        prompts = tuple(texts)[: max(1, settings.sample_count)]
    return replace(settings, dataset=str(folder), prompts=prompts)


def arithmetic(settings: TrainSFTConfig) -> str:
    """Say in words what is drawn and what is trained on."""
    parts = settings.batch_size, settings.gradient_accumulation
    size = f"{parts[0] * parts[1]}" + (f" ({parts[0]} x {parts[1]})" if parts[1] > 1 else "")
    images = f"{settings.images} images x {settings.num_inference_steps} steps, drawn once"
    if settings.dataset:
        images = f"Images of {settings.dataset}"
    return f"{images}; then {settings.steps} updates on {size} of them."


def _records(
    settings: TrainSFTConfig,
    model: "DiffusionModel",
    reward: "WeightedReward",
    run: "RunFolder",
    stop: Callable[[], bool],
    view: SFTView,
) -> Iterator[Record]:
    from dpok_cli.engine.sft.loop import train_sft as steps

    return steps(settings, model, reward, run, stop, view.drawn, view.warn)


METHOD = _training.Method("train-sft", TrainSFTConfig, SFTView, arithmetic, _records, with_dataset)
