"""`dpok train-rl`: fine-tune by online RL, and show how it goes."""

import shlex
from typing import TYPE_CHECKING, Any

import typer

from dpok_cli import console, options
from dpok_cli.allocator import keep_freed_memory
from dpok_cli.config import TINY, TrainRLConfig, to_toml
from dpok_cli.errors import InputError

if TYPE_CHECKING:
    from dpok_cli.engine.run import RunFolder
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
    if resume:
        if preset or config or prompts_file or category:
            raise InputError("--resume takes the run's own settings: leave out other sources.")
        run = _open(resume, flags)
        settings = options.resume(TrainRLConfig, flags, run.config)
        _train(settings, quiet, run)
        return
    settings = options.resolve(
        TrainRLConfig,
        flags,
        preset=preset,
        file=config,
        prompts_file=prompts_file,
        category=category,
    )
    if print_config:
        console.say(to_toml(settings).rstrip(), console.out)
        return
    if not settings.prompts:
        raise InputError(
            'No prompt was given: say what to draw, as in --prompt "a green colored rabbit".'
        )
    if not quiet and not (preset or config or flags["model"]):
        console.say(
            "Using the bundled tiny model; --preset sd15 is the paper's run on Stable"
            " Diffusion v1.5."
        )
    _train(settings, quiet)


def _open(run: str, flags: dict[str, Any]) -> "RunFolder":
    from dpok_cli.engine.run import RunFolder

    return RunFolder.open(run, flags["runs_dir"] or TrainRLConfig.runs_dir)


def _train(settings: TrainRLConfig, quiet: bool, run: "RunFolder | None" = None) -> None:
    from dpok_cli.engine.run import RunFolder
    from dpok_cli.engine.source import check_source
    from dpok_cli.rewards.manager import build

    # What can be refused without torch is refused before it is imported.
    build(settings.rewards, tiny=settings.model == TINY)
    if run is None:
        RunFolder.check_free(settings)
    check_source(settings.model)

    keep_freed_memory()
    from dpok_cli.engine.compare import compare
    from dpok_cli.engine.model import load
    from dpok_cli.engine.plots import plot_metrics
    from dpok_cli.engine.processes import create_run, is_main
    from dpok_cli.engine.stop import Stop
    from dpok_cli.engine.train_rl import train_rl as rounds

    main = is_main(settings.device)
    quiet = quiet or not main
    if not quiet:
        console.say(batch_arithmetic(settings))
    model = load(settings)
    # Before the run folder is made, since the model may not have such layers.
    targets = settings.lora_targets
    model.add_adapter(settings.lora_rank, settings.lora_alpha, targets, settings.seed)
    reward = build(settings.rewards, model.device, tiny=settings.model == TINY)
    reward.prepare()
    run = run or create_run(settings, "train-rl")
    go_on = f"dpok train-rl --resume {shlex.quote(str(run.path))}"
    if not quiet:
        console.say(f"Run folder: {run.path}")

    def tell() -> None:
        if not quiet:
            console.say("Stopping at the next point where nothing is lost; again to stop at once.")

    try:
        with Stop(tell) as stop, console.TrainingView(settings, quiet) as view:
            for record in rounds(settings, model, reward, run, stop.__bool__):
                view.show(record)
    except KeyboardInterrupt:
        console.say(f"Interrupted; go on with: {go_on}")
        raise
    finally:
        if main and (history := run.history()):
            plot_metrics(history, run.plots / "metrics.png")
    if stop:
        if not quiet:
            console.say(f"Stopped; go on with: {go_on}")
        raise typer.Exit(stop.exit_code)
    if not main:
        return
    summary = compare(model, reward, settings, run, _held_out(settings, reward))
    if "before" in summary:
        before, after = summary["before"], summary["after"]
        if len(reward.names) == 1:
            del before["reward"]  # the weighted sum of one
        console.out.print(console.before_after_table(before, after))
    console.say(f"Adapter: {run.adapter}", console.out)
    console.say(f"Next: dpok sample --run {shlex.quote(str(run.path))} --before", console.out)


def _held_out(settings: TrainRLConfig, reward: "WeightedReward") -> "WeightedReward | None":
    """Return the tiny world's judge where it can judge: it tells, but is not trained for."""
    from dpok_cli.rewards.manager import build
    from dpok_cli.tiny.words import parse

    if settings.model != TINY or "judge" in reward.names or None in map(parse, settings.prompts):
        return None
    return build(["judge"], next(iter(reward.rewards.values()))[0].device)


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
