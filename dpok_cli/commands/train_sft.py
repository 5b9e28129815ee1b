"""`dpok train-sft`: reward-weighted supervised fine-tuning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dpok_cli.commands import _prompts, _training
from dpok_cli.config import TrainSFTConfig
from dpok_cli.config import flags as options
from dpok_cli.display.training import SFTView
from dpok_cli.engine.sft.measures import SFT_MEASURES


@options.config_flags(TrainSFTConfig)
def train_sft(
    *,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    print_config: options.PrintConfig = False,
    plan: options.Plan = False,
    prompts_file: options.PromptsFile = None,
    prompt_column: options.PromptColumn = None,
    category: options.Category = None,
    resume: options.Resume = None,
    quiet: options.Quiet = False,
    **flags: Any,
) -> None:
    """Fine-tune a text-to-image model with LoRA on its own images, weighted by their reward.

    The images are drawn once from the pre-trained model, scored and kept; --dataset shares them
    between runs. Presets: tiny (the bundled model, minutes on a CPU; its values are the defaults
    below), sd15-sft, or sd15 (the paper's run on Stable Diffusion v1.5), and sdxl, sd35 and flux
    (Stable Diffusion XL, 3.5 medium and FLUX.1-dev on one GPU, untried).

    Example: dpok train-sft --prompt "a green colored rabbit"
    """
    run = _training.find_run(resume, flags["runs_dir"] or TrainSFTConfig.runs_dir, "train-sft")
    settings = _training.resolve(
        TrainSFTConfig,
        flags,
        run,
        preset=preset,
        file=config,
        prompts_file=_prompts.settled(prompts_file, prompt_column, quiet),
        category=category,
    )
    if print_config:
        _training.print_settings(settings)
        return
    if plan:
        _training.print_plan(settings)
        return
    settings = with_dataset(settings, resumed=bool(run))
    hint = "" if preset or config or flags["model"] or run else _training.BUNDLED
    with _training.Job(settings, run, quiet) as job:
        job.load(hint, arithmetic(settings))
        from dpok_cli.engine.sft.loop import train_sft as steps

        view = SFTView(
            settings, SFT_MEASURES, "step", settings.steps, settings.log_every, quiet=job.quiet
        )
        with job.training(view) as stop:
            for record in steps(
                settings, job.model, job.reward, job.run, stop.requested, view.drawn, view.warn
            ):
                view.show(record)
        job.report()


def with_dataset(settings: TrainSFTConfig, resumed: bool = False) -> TrainSFTConfig:
    """Check the dataset folder; without a prompt, use the prompts of the user's image folder.

    Sample grids and evaluations draw these; all prompts of the folder are trained on. A run that
    is ``resumed`` has its prompts, and compares the folder with what it had itself.
    """
    if not settings.dataset:
        return settings
    from dpok_cli.engine.sft.dataset.imagefolder import check_dataset, is_own, own_entries

    folder = Path(settings.dataset).resolve()
    if resumed:
        return replace(settings, dataset=str(folder))
    check_dataset(folder)
    prompts = settings.prompts
    if not prompts and is_own(folder):
        texts = dict.fromkeys(entry["text"] for entry in own_entries(folder))
        prompts = tuple(texts)[: max(1, settings.sample_count)]
    return replace(settings, dataset=str(folder), prompts=prompts)


def arithmetic(settings: TrainSFTConfig) -> str:
    """Describe what is drawn and trained on."""
    parts = settings.batch_size, settings.gradient_accumulation
    size = f"{parts[0] * parts[1]}" + (f" ({parts[0]} x {parts[1]})" if parts[1] > 1 else "")
    images = f"{settings.images} images x {settings.num_inference_steps} steps, drawn once"
    if settings.dataset:
        images = f"Images of {settings.dataset}"
    return f"{images}; then {settings.steps} updates on {size} of them."
