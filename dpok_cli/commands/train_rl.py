"""`dpok train-rl`: fine-tune by online RL, and show how it goes."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dpok_cli.commands import _training
from dpok_cli.config import TrainRLConfig
from dpok_cli.config import flags as options
from dpok_cli.display.training import Record, RLView

if TYPE_CHECKING:
    from dpok_cli.engine.bases.model import DiffusionModel
    from dpok_cli.engine.runs.folder import RunFolder
    from dpok_cli.rewards.combined import WeightedReward


@options.config_flags(TrainRLConfig)
def train_rl(
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
    """Fine-tune a text-to-image model with LoRA, from a reward, by online RL (DPOK).

    Presets: tiny (the bundled model, minutes on a CPU; its values are the defaults below), sd15
    (the paper's run on Stable Diffusion v1.5, one prompt) and sd15-multi (many prompts).

    Example: dpok train-rl --prompt "a green colored rabbit"
    """
    sources = _training.Sources(preset, config, prompts_file, category, resume)
    _training.command(METHOD, sources, flags, print_config, quiet)


def _records(
    settings: TrainRLConfig,
    model: "DiffusionModel",
    reward: "WeightedReward",
    run: "RunFolder",
    stop: Callable[[], bool],
    view: RLView,
) -> Iterator[Record]:
    from dpok_cli.engine.rl.loop import train_rl as rounds

    return rounds(settings, model, reward, run, stop, view.warn)


def batch_arithmetic(settings: TrainRLConfig) -> str:
    """Say in words what is drawn and what is trained on in a round."""
    images, steps = settings.samples_per_round, settings.num_inference_steps
    fresh, accumulation = settings.transitions_per_round, settings.gradient_accumulation
    batch = min(settings.batch_size, max(fresh, settings.buffer_size))
    buffer = f", drawn from the last {settings.buffer_size}" if settings.buffer_size else ""
    parts = f" ({batch} x {accumulation})" if accumulation > 1 else ""
    return (
        f"A round: {images} images x {steps} steps; {fresh} of {images * steps} transitions"
        f"{buffer}, in {settings.updates_per_round} updates of {batch * accumulation}{parts}."
        f" Rounds: {settings.rounds}, with {settings.rounds * images} images and"
        f" {settings.rounds * settings.updates_per_round} updates in all."
    )


METHOD = _training.Method("train-rl", TrainRLConfig, RLView, batch_arithmetic, _records)
