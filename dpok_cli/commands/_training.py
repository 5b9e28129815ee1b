"""The steps that `train-rl` and `train-sft` share: resolve, load, train, report."""

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import typer

from dpok_cli.allocator import keep_freed_memory
from dpok_cli.config import TINY, TrainingConfig, flags, to_toml
from dpok_cli.display import console, tables
from dpok_cli.display.training import TrainingView
from dpok_cli.errors import InputError
from dpok_cli.memory import advice_when_full

if TYPE_CHECKING:
    from dpok_cli.engine.distributed import Ranks
    from dpok_cli.engine.runs.folder import RunFolder
    from dpok_cli.engine.training.stop import Stop
    from dpok_cli.rewards.combined import WeightedReward

Training = TypeVar("Training", bound=TrainingConfig)

BUNDLED = "Using the bundled tiny model; --preset sd15 is the paper's run on Stable Diffusion v1.5."


def find_run(name: str | None, runs_dir: str, command: str) -> "RunFolder | None":
    """Return the run to resume, or None; raises InputError if another command made it."""
    if not name:
        return None
    from dpok_cli.engine.runs.folder import RunFolder

    run = RunFolder.open(name, runs_dir)
    if (made_by := run.command()) != command:
        raise InputError(
            f"{run.path} is a run of {made_by}: dpok {made_by} --resume {quoted(run)}."
        )
    return run


def resolve(
    kind: type[Training], given: dict[str, Any], run: "RunFolder | None", **sources: Any
) -> Training:
    """Return the settings of a new run from flags and ``sources``, or of one that is resumed.

    An adapter to start from brings its rank, alpha and targets, except for those given as flags.
    Paths are absolute, so that the run can be resumed and evaluated from another folder.
    """
    from dpok_cli.rewards.spec import located

    if run is None:
        settings = flags.resolve(kind, given, **sources).located()
        settings = replace(settings, rewards=tuple(map(located, settings.rewards)))
        return _with_adapter(settings, given) if settings.init_adapter else settings
    if any(sources.values()):
        raise InputError("--resume takes the settings of the run: leave out other sources.")
    return flags.resume(kind, given, run.config).located()


def _with_adapter(settings: Training, given: dict[str, Any]) -> Training:
    from dpok_cli.engine.lora.files import adapter_settings

    known = adapter_settings(Path(settings.init_adapter), "--init-adapter")
    if set(known.get("lora_targets", ())) == set(settings.lora_targets):
        known.pop("lora_targets", None)
    free = {key: value for key, value in known.items() if given.get(key) in (None, [])}
    return replace(settings, **free)


def print_settings(settings: TrainingConfig) -> None:
    console.say(to_toml(settings).rstrip(), console.out)


def print_plan(settings: TrainingConfig) -> None:
    """Print the memory that a training will need; raises InputError if it does not fit."""
    from dpok_cli.engine.distributed import device_of, process_state
    from dpok_cli.engine.training.plan import check_plan, plan_memory

    device, state = device_of(settings.device), process_state(settings.device)
    plan = plan_memory(settings, device, state.num_processes)
    if state.is_main_process:
        console.show(tables.plan_table([(each.name, each.parts) for each in plan.phases]))
        for reward in plan.unknown:
            console.say(f"Not counted: the weights of {reward}, which are not on this machine.")
    check_plan(plan, settings, device, state.num_processes)


class Job:
    """One training, from checked settings to a report: ``with Job(...) as job``.

    Within the block it is the only writer of its run.
    """

    def __init__(self, settings: TrainingConfig, run: "RunFolder | None", quiet: bool):
        """Do the checks that need no torch; ``run`` is a run to resume."""
        from dpok_cli.engine.bases.source import check_source
        from dpok_cli.engine.lora.files import check_adapter
        from dpok_cli.engine.runs.folder import RunFolder
        from dpok_cli.rewards.comparing import PER_IMAGE, refuse_comparing
        from dpok_cli.rewards.manager import build, check_specs

        if not settings.prompts:
            raise InputError(
                'No prompt was given: say what to draw, as in --prompt "a green colored rabbit".'
            )
        check_specs(settings.rewards, tiny=settings.model == TINY)
        if settings.command == "train-sft":  # whether a reward compares may be one of its options
            refuse_comparing(build(settings.rewards, tiny=settings.model == TINY), PER_IMAGE)
        if run is None:
            RunFolder.check_free(settings)
        check_source(settings)
        self.resumed = bool(run and run.has_checkpoints())
        if settings.init_adapter and not self.resumed:
            check_adapter(Path(settings.init_adapter), "--init-adapter")
        self.settings, self.existing, self.quiet = settings, run, quiet
        self._lock = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def load(self, *lines: str) -> None:
        """Load model and rewards, then make the run folder; ``lines`` are printed before."""
        keep_freed_memory()
        from dpok_cli.engine.bases.load import load
        from dpok_cli.engine.distributed import process_state, run_on_main
        from dpok_cli.engine.runs.folder import RunFolder
        from dpok_cli.engine.sampling.sampler import Sampler
        from dpok_cli.rewards.manager import build, registry

        settings, state = self.settings, process_state(self.settings.device)
        self.is_main, self.processes = state.is_main_process, state.num_processes
        self.quiet = self.quiet or not self.is_main
        if not self.quiet:
            for line in (*filter(None, lines[:1]), *registry().left_out(), *lines[1:]):
                console.say(line)
        if self.existing:
            self._hold(self.existing, state)
        self.say(run_on_main(self._plan, state))
        with advice_when_full(settings, processes=self.processes):
            self.model = load(settings)
            # Before the run folder is made, since steps or adapter may not fit the model.
            self.sampler = Sampler(self.model, settings)
            Sampler(self.model, settings.for_evaluation())
            self.model.adapter.start(settings, self.existing)
            self.model.encode(settings.prompts, settings.negative_prompt)
            for line in self.model.unread(settings.prompts):
                self.say(line)
            self.reward = build(
                settings.rewards,
                self.model.device,
                tiny=settings.model == TINY,
                rest=settings.offload,
            )
            self.reward.prepare()
            for line in self.reward.unread(settings.prompts):
                self.say(line)
        if self.existing:
            self.run = self.existing
        else:
            self.run = run_on_main(lambda: RunFolder.create(settings), state)
            self._hold(self.run, state)
        self.resume = f"dpok {settings.command} --resume {quoted(self.run)}"

    @contextmanager
    def training(self, view: TrainingView) -> Iterator["Stop"]:
        """Run the loop in this block: signals stop it gracefully, and its metrics are plotted.

        Ends the command with the signal's exit code after a stop.
        """
        from dpok_cli.engine.training.stop import Stop

        stop = Stop(self._tell_stop, lambda: console.log.has_lost_reader)
        try:
            with advice_when_full(self.settings, self.resume, self.processes), stop:
                self.say(f"Run folder: {self.run.path}")  # from here on signals are handled
                try:
                    with view:
                        yield stop
                except InputError:
                    raise
                except BaseException:
                    self._plot(view)
                    raise
                self._plot(view)
                self.say(kept_adapter(view, self.settings.patience))
                if stop.requested():
                    self.say(f"Stopped; resume with: {self.resume}")
                    raise typer.Exit(stop.exit_code)
        except InputError:  # the run cannot begin, or cannot be resumed, and is left as it is
            if self.existing is None and self.is_main:
                self.run.remove_if_unused()
            raise
        except KeyboardInterrupt:
            console.say(f"Interrupted; resume with: {self.resume}")
            if not stop.signal:  # a reward's own
                raise
            raise typer.Exit(stop.exit_code) from None

    def report(self) -> None:
        """Compare with the reference model, and print the outputs; on rank 0 only."""
        if not self.is_main:
            return
        from dpok_cli.engine.evaluation.compare import compare

        with advice_when_full(self.settings, self.resume, self.processes):
            summary = compare(
                self.model,
                self.reward,
                self.settings,
                self.run,
                self._held_out(),
                partial(console.progress, quiet=self.quiet),
            )
        if "before" in summary:
            before, after = summary["before"], summary["after"]
            if len(self.reward.names) == 1:
                del before["reward"]  # the weighted sum of one
            console.show(tables.before_after_table(before, after))
        console.say(f"Adapter: {self.run.adapter}", console.out)
        console.say(f"Next: dpok sample --run {quoted(self.run)} --before", console.out)
        has_unet = self.model.adapter.denoiser == "unet"
        tools, form = ("ComfyUI or A1111", "kohya") if has_unet else ("ComfyUI", "diffusers")
        export = f"dpok export {quoted(self.run)} --format {form}"
        console.say(f"For {tools}: {export}", console.out)

    def _plan(self) -> str:
        """Return what memory a large model will need; raises InputError if it does not fit."""
        from dpok_cli.engine.distributed import device_of
        from dpok_cli.engine.training.plan import check_plan, gigabytes, is_large, plan_memory

        if not is_large(self.settings):
            return ""
        device = device_of(self.settings.device)
        plan = plan_memory(self.settings, device, self.processes)
        check_plan(plan, self.settings, device, self.processes)
        most, has = gigabytes(plan.peak.total), gigabytes(plan.memory)
        return f"Memory: {most} of {has} to {plan.peak.name}; --plan shows all phases."

    def _hold(self, run: "RunFolder", ranks: "Ranks") -> None:
        """Keep other commands from writing to the run; raises InputError if one does."""
        from dpok_cli.engine.distributed import on_main
        from dpok_cli.engine.runs.lock import one_writer

        self._lock.enter_context(on_main(lambda: one_writer(run.path), ranks))

    def _held_out(self) -> "WeightedReward | None":
        """Return the tiny world's judge, if it knows all prompts and is not a training reward."""
        from dpok_cli.rewards.manager import build
        from dpok_cli.tiny.words import parse

        settings, names = self.settings, self.reward.names
        if settings.model != TINY or "judge" in names or None in map(parse, settings.prompts):
            return None
        return build(["judge"], self.model.device)

    def _plot(self, view: TrainingView) -> None:
        from dpok_cli.engine.runs.plots import plot_metrics

        if self.is_main and (history := self.run.history()):
            plot_metrics(history, view.measures, view.unit, self.run.plots / "metrics.png")

    def _tell_stop(self) -> None:
        self.say("Stopping at the next safe point; repeat to stop at once.")

    def say(self, line: str) -> None:
        """Print a line, if it is not empty, on rank 0 and unless the command is quiet."""
        if line and not self.quiet:
            console.say(line)


def kept_adapter(view: TrainingView, patience: int) -> str:
    """Say which adapter a training with ``patience`` has kept, if it is not the newest."""
    best = int(view.newest.get("grid/best", 0))
    if not (patience and best and view.records) or best == (
        last := int(view.records[-1][view.unit])
    ):
        return ""
    return (
        f"Ended after {view.unit} {last} of {view.total}. adapter/ is that of {view.unit} {best},"
        " whose sample grid has the best reward; the newest is in last_adapter/."
    )


def quoted(run: "RunFolder") -> str:
    return shlex.quote(str(run.path))
