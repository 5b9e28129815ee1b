"""What `train-rl` and `train-sft` have in common: from the flags to the adapter."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from dpok_cli.allocator import keep_freed_memory
from dpok_cli.config import TINY, TrainingConfig, to_toml
from dpok_cli.config import flags as options
from dpok_cli.display import console
from dpok_cli.display.training import TrainingView
from dpok_cli.errors import InputError
from dpok_cli.memory import advice_when_full

if TYPE_CHECKING:
    from dpok_cli.engine.bases.model import DiffusionModel
    from dpok_cli.engine.runs.folder import RunFolder
    from dpok_cli.rewards.combined import WeightedReward

BUNDLED = "Using the bundled tiny model; --preset sd15 is the paper's run on Stable Diffusion v1.5."


class Sources(NamedTuple):
    """Where settings come from, besides the flags."""

    preset: str | None
    config: Path | None
    prompts_file: Path | None
    category: str | None
    resume: str | None


class Method(NamedTuple):
    """A way to train, as its command has it."""

    command: str
    kind: type[Any]  # of the config
    view: type[Any]
    #: Says what will be drawn and trained on.
    arithmetic: Callable[[Any], str]
    #: Makes the generator of records, given settings, model, reward, run folder, stop and view.
    records: Callable[..., Any]
    #: Checks the settings, without torch, and may complete them.
    check: Callable[[Any], Any] = lambda settings: settings


def command(
    method: Method, sources: Sources, flags: dict[str, Any], print_config: bool, quiet: bool
) -> None:
    """Be the command: put the settings together, then print them or train."""
    if sources.resume:
        if any(sources[:-1]):
            raise InputError("--resume takes the run's own settings: leave out other sources.")
        runs_dir = flags["runs_dir"] or method.kind.runs_dir
        run = _open(sources.resume, runs_dir, method.command)
        train(method, options.resume(method.kind, flags, run.config), quiet, run)
        return
    settings = options.resolve(
        method.kind,
        flags,
        preset=sources.preset,
        file=sources.config,
        prompts_file=sources.prompts_file,
        category=sources.category,
    )
    if print_config:
        console.say(to_toml(settings).rstrip(), console.out)
        return
    settings = method.check(settings)
    if not settings.prompts:
        raise InputError(
            'No prompt was given: say what to draw, as in --prompt "a green colored rabbit".'
        )
    chosen = sources.preset or sources.config or flags["model"]
    train(method, settings, quiet, hint="" if chosen else BUNDLED)


def _open(run: str, runs_dir: str, command: str) -> "RunFolder":
    """Open a run to go on with; raises InputError if another command started it."""
    from dpok_cli.engine.runs.folder import RunFolder

    folder = RunFolder.open(run, runs_dir)
    counts = {"rounds": "train-rl", "steps": "train-sft"}
    started = next((of for key, of in counts.items() if key in folder.read_config()), command)
    if started != command:
        raise InputError(
            f"{folder.path} is a run of {started}: dpok {started} --resume {_quoted(folder)}."
        )
    return folder


def train(
    method: Method,
    settings: TrainingConfig,
    quiet: bool,
    run: "RunFolder | None" = None,
    hint: str = "",
) -> None:
    """Train, and say what came of it; a ``run`` that is given is gone on with.

    ``hint`` is said first, once it is clear that the run can begin.
    """
    from dpok_cli.engine.bases.source import check_adapter, check_source
    from dpok_cli.engine.runs.folder import RunFolder
    from dpok_cli.rewards.manager import build, registry

    # What can be refused without torch is refused before it is imported.
    build(settings.rewards, tiny=settings.model == TINY)
    if run is None:
        RunFolder.check_free(settings)
    check_source(settings.model)
    fresh = not (run and run.has_checkpoints())
    if settings.init_adapter and fresh:
        check_adapter(Path(settings.init_adapter), "--init-adapter")

    keep_freed_memory()
    from dpok_cli.engine.bases.model import load
    from dpok_cli.engine.distributed import count, create_run, is_main

    quiet = quiet or not is_main(settings.device)
    if not quiet:
        if hint:
            console.say(hint)
        for line in registry().left_out():
            console.say(line)
        console.say(method.arithmetic(settings))
    with advice_when_full(settings, processes=count()):
        model = load(settings)
        # Before the run folder is made, since it may not fit the model.
        model.adapt(settings, fresh)
        reward = build(settings.rewards, model.device, tiny=settings.model == TINY)
        reward.prepare()
    begun = run is None
    run = run or create_run(settings, method.command)
    go_on = f"dpok {method.command} --resume {_quoted(run)}"
    try:
        with advice_when_full(settings, go_on, processes=count()):
            _run(method, settings, model, reward, run, go_on, quiet)
    except InputError:
        if begun and is_main(settings.device):
            run.remove_if_unused()
        raise


def _run(
    method: Method,
    settings: TrainingConfig,
    model: "DiffusionModel",
    reward: "WeightedReward",
    run: "RunFolder",
    go_on: str,
    quiet: bool,
) -> None:
    """Train in the run folder, then compare with what was before, and say it."""
    from dpok_cli.engine.distributed import is_main
    from dpok_cli.engine.evaluation.compare import compare
    from dpok_cli.engine.runs.plots import plot_metrics
    from dpok_cli.engine.training.stop import Stop

    main = is_main(settings.device)

    def tell() -> None:
        if not quiet:
            console.say("Stopping at the next point where nothing is lost; again to stop at once.")

    try:
        view: TrainingView[Any]
        with Stop(tell) as stop:
            if not quiet:  # from here on a signal is heard
                console.say(f"Run folder: {run.path}")
            with method.view(settings, quiet) as view:
                for record in method.records(settings, model, reward, run, stop.__bool__, view):
                    view.show(record)
    except KeyboardInterrupt:
        console.say(f"Interrupted; go on with: {go_on}")
        raise
    finally:
        refused = isinstance(sys.exception(), InputError)
        if main and not refused and (history := run.history()):
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
    console.say(f"Next: dpok sample --run {_quoted(run)} --before", console.out)


def _quoted(run: "RunFolder") -> str:
    return shlex.quote(str(run.path))


def _held_out(settings: TrainingConfig, reward: "WeightedReward") -> "WeightedReward | None":
    """Return the tiny world's judge where it can judge: it tells, but is not trained for."""
    from dpok_cli.rewards.manager import build
    from dpok_cli.tiny.words import parse

    if settings.model != TINY or "judge" in reward.names or None in map(parse, settings.prompts):
        return None
    return build(["judge"], next(iter(reward.rewards.values()))[0].device)
