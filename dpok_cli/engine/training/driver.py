"""The driver of every training: resume, advance round by round, keep what each round made."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from dpok_cli.engine.bases.fingerprint import SameModel
from dpok_cli.engine.runs.folder import RunFolder, number_of
from dpok_cli.engine.runs.versions import note_versions
from dpok_cli.engine.training.checkpoint import Checkpoints, Tree
from dpok_cli.engine.training.outputs import Metrics, Outputs
from dpok_cli.engine.training.session import Session
from dpok_cli.engine.training.watch import Watch
from dpok_cli.errors import InputError, RewardError, StopRequested
from dpok_cli.rewards.combined import WeightedReward


class Loop(Protocol):
    """A way to train: what happens in one round (RL) or one step (SFT)."""

    #: "round" or "step": what `advance` counts, and the first key of a record.
    unit: str
    #: After how many of them `advance` returns a record.
    record_every: int
    #: The number of the last round or step.
    last: int
    #: Images drawn (RL) or in the image set (SFT) so far, by all ranks.
    samples: int

    def advance(self, number: int) -> Metrics | None:
        """Do round or step ``number``; returns its metrics, if a record is due.

        Raises StopRequested or RewardError before it has changed anything.
        """
        ...

    def close(self) -> None: ...
    def state_dict(self) -> Tree: ...
    def load_state_dict(self, state: Any) -> None: ...


def drive(loop: Loop, session: Session, reward: WeightedReward) -> Iterator[Metrics]:
    """Train until the last round or until a stop is requested, yielding the records.

    A run that has checkpoints is resumed from the newest; it is told if the ``reward`` has changed.
    After an error or a stop the adapter as trained so far is kept. With `patience` it is the one of
    the sample grid with the best reward, which the model has at the end.
    """
    config = session.config
    outputs, watch = Outputs(session, loop.unit), Watch(session, reward)
    checkpoints = Checkpoints(
        session.run.checkpoints if session.run else None,
        config.keep,
        session.accelerator,
        {
            "model": SameModel(session.model, config.model),
            "adapter": session.model.adapter,
            "updater": session.updater,
            "loop": loop,
            "watch": watch,
        },
    )
    number = checkpoints.resume(session.warn)  # before anything is written: it may be refused
    if session.run:
        _compare_with_metrics(number, loop, session.run, session.warn)
    if number > loop.last:
        raise InputError(
            f"The run already has {number} {loop.unit}s: give --{loop.unit}s {number} or more."
        )
    if watch.is_over:
        said = (
            f"The run ended after {loop.unit} {number}, since {config.patience} sample grids in a"
            " row brought no better reward: give a larger --patience, or 0, to train on."
        )
        # Without more rounds it ends as a complete run does, whose comparison may be missing.
        if session.run and session.run.read_config()[f"{loop.unit}s"] < loop.last:
            raise InputError(said)
        session.warn(said)
    if session.run and session.is_main:
        note_versions(session.run.path, reward, session.warn)
    outputs.resume(number)
    session.accelerator.wait_for_everyone()
    seen: Metrics = {}  # of the newest grid, until a record takes it
    try:
        if number in (0, loop.last) or _is_due(number, config.sample_every):
            # A stop may have come before it was drawn, or measured.
            seen = watch.see(number, outputs.draw_grid(number, again=watch.number != number))
            if outputs.amend(number, seen):
                seen = {}
        while number < loop.last and not watch.is_over:
            try:
                record = loop.advance(number + 1)
            except (StopRequested, RewardError) as reason:  # the state is still that of ``number``
                if config.checkpoint_every:
                    checkpoints.write(number)
                if isinstance(reason, StopRequested):
                    return
                raise
            number += 1
            failed: RewardError | None = None
            if is_grid := number == loop.last or _is_due(number, config.sample_every):
                try:
                    seen = seen | watch.see(number, outputs.draw_grid(number))
                except RewardError as error:  # raised below, when the round's work is kept
                    failed = error
            if record:
                record, seen = record | seen, {}
                outputs.log(number, record)
            ending = session.should_stop() or number == loop.last or watch.is_over or failed
            if is_grid:
                outputs.save_adapter(loop.samples, watch.weights)
            if config.checkpoint_every and (ending or _is_due(number, config.checkpoint_every)):
                checkpoints.write(number)
            if failed:
                raise failed
            if record:
                yield record
            if ending:
                return
    finally:
        outputs.save_adapter(loop.samples, watch.weights)
        if watch.weights:
            session.model.adapter.load_state_dict(watch.weights)
        loop.close()
        outputs.close()


def _compare_with_metrics(
    number: int, loop: Loop, run: RunFolder, warn: Callable[[str], None]
) -> None:
    """Compare what a resume found, the state after ``number``, with what the run left.

    Raises InputError if the run has metrics and no checkpoint, though it wrote some.
    """
    history, unit = run.history(), loop.unit
    if not history:
        if number >= loop.record_every:
            warn(f"{run.metrics} is gone or empty, so it begins after {unit} {number}.")
        return
    reached, every = int(number_of(history[-1])), run.read_config().get("checkpoint_every", 0)
    if number == 0 and every == 0:
        raise InputError(
            f"{run.path} was trained with --checkpoint-every 0, so it has no checkpoint to resume"
            " from. Start a new run."
        )
    # The metrics of a round are written before its checkpoint.
    expected = (reached - 1) // every * every if every else 0
    if number == 0 and expected:
        raise InputError(
            f"{run.path} has the metrics of {reached} {unit}s, but its checkpoints are gone: bring"
            f" {run.checkpoints} back, or start a new run."
        )
    if number < expected or number == 0:
        newest = (
            f"The newest checkpoint is of {unit} {number}"
            if number
            else "No checkpoint was written"
        )
        warn(f"{newest}: {unit}s {number + 1} to {reached} are repeated.")


def _is_due(number: int, every: int) -> bool:
    """Return whether ``number`` is a multiple of ``every``; 0 means never."""
    return bool(every) and number % every == 0
