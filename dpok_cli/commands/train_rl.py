"""`dpok train-rl`: fine-tune by online RL."""

from typing import Any

from dpok_cli.commands import _prompts, _training
from dpok_cli.config import flags as options
from dpok_cli.display.training import TrainingView
from dpok_cli.engine.rl.measures import rl_measures
from dpok_cli.engine.rl.settings import TrainRLConfig


@options.config_flags(TrainRLConfig)
def train_rl(
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
    """Fine-tune a text-to-image model with LoRA, from a reward, by online RL (DPOK).

    Presets: tiny (the bundled model, minutes on a CPU; its values are the defaults below), sd15
    (the paper's run on Stable Diffusion v1.5, one prompt), sd15-multi (many prompts), and sdxl,
    sd35 and flux (Stable Diffusion XL, 3.5 medium and FLUX.1-dev on one GPU, after other papers).

    Example: dpok train-rl --prompt "a green colored rabbit"
    """
    run = _training.find_run(resume, flags["runs_dir"] or TrainRLConfig.runs_dir, "train-rl")
    settings = _training.resolve(
        TrainRLConfig,
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
    hint = "" if preset or config or flags["model"] or run else _training.BUNDLED
    with _training.Job(settings, run, quiet) as job:
        job.load(hint, batch_arithmetic(settings))
        job.say(noiseless_steps(settings, len(job.sampler.denoising.stochastic)))
        from dpok_cli.engine.rl.loop import train_rl as rounds

        measures = rl_measures(settings.objective_class)
        view = TrainingView(settings, measures, "round", settings.rounds, quiet=job.quiet)
        with job.training(view) as stop:
            for record in rounds(
                settings, job.model, job.reward, job.run, stop.requested, warn=view.warn
            ):
                view.show(record)
        job.report()


def batch_arithmetic(settings: TrainRLConfig) -> str:
    """Describe what a round draws and trains on."""
    images, steps = settings.samples_per_round, settings.steps_per_image
    fresh, accumulation = settings.transitions_per_round, settings.gradient_accumulation
    batch = min(settings.batch_size, max(fresh, settings.buffer_size))
    buffer = f", drawn from the last {settings.buffer_size}" if settings.buffer_size else ""
    parts = f" ({batch} x {accumulation})" if accumulation > 1 else ""
    if settings.auto_batch_size:
        parts = " (in passes that fit into memory)"
    return (
        f"A round: {images} images x {steps} steps; {fresh} of {images * steps} transitions"
        f"{buffer}, in {settings.updates_per_round} updates of {batch * accumulation}{parts}."
        f" Rounds: {settings.rounds}, with {settings.rounds * images} images and"
        f" {settings.rounds * settings.updates_per_round} updates in all."
    )


def noiseless_steps(settings: TrainRLConfig, noisy: int) -> str:
    """Say how many transitions a round really has, if just so many steps have noise."""
    steps, trained = settings.num_inference_steps, settings.steps_trained
    # Without any there is nothing to train, which is refused.
    if noisy in (0, trained if settings.noise_window else steps):
        return ""
    from dpok_cli.engine.sampling.step import share_of

    if settings.noise_window:
        said, kept = f"{noisy} of the {trained} steps to train on have noise", noisy
    else:
        said = f"{steps - noisy} of the {steps} steps have no noise, so they are not trained on"
        kept = share_of(noisy, settings.timestep_fraction)
    fresh = settings.samples_per_round * kept
    return f"With this model {said}: a round has {fresh} transitions."
