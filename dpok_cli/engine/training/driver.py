"""The driver of every training: resume, advance round by round, keep what each round made."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from dpok_cli.engine.bases.fingerprint import SameModel
from dpok_cli.engine.runs.folder import RunFolder, number_of
from dpok_cli.engine.runs.versions import note_versions
from dpok_cli.engine.training.checkpoint import Checkpoints, Tree
from dpok_cli.engine.training.outputs import Metrics, Outputs
from dpok_cli.engine.training.session import Session
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
    After an error or a stop the adapter as trained so far is kept.
    """
    config = session.config
    outputs = Outputs(session, loop.unit)
    checkpoints = Checkpoints(
        session.run.checkpoints if session.run else None,
        config.keep,
        session.accelerator,
        {
            "model": SameModel(session.model, config.model),
            "adapter": session.model.adapter,
            "updater": session.updater,
            "loop": loop,
        },
    )
    number = checkpoints.resume(session.warn)  # before anything is written: it may be refused
    if session.run:
        _compare_with_metrics(number, loop, session.run, session.warn)
    if number > loop.last:
        raise InputError(
            f"The run already has {number} {loop.unit}s: give --{loop.unit}s {number} or more."
        )
    if session.run and session.is_main:
        note_versions(session.run.path, reward, session.warn)
    outputs.resume(number)
    session.accelerator.wait_for_everyone()
    try:
        if number in (0, loop.last) or _is_due(number, config.sample_every):
            outputs.draw_grid(number, again=False)  # a stop may have come before it was drawn
        while number < loop.last:
            try:
                record = loop.advance(number + 1)
            except (StopRequested, RewardError) as reason:  # the state is still that of ``number``
                if config.checkpoint_every:
                    checkpoints.write(number)
                if isinstance(reason, StopRequested):
                    return
                raise
            number += 1
            if record:
                outputs.log(number, record)
            ending = session.should_stop() or number == loop.last
            if number == loop.last or _is_due(number, config.sample_every):
                outputs.draw_grid(number)
                outputs.save_adapter(loop.samples)
            if config.checkpoint_every and (ending or _is_due(number, config.checkpoint_every)):
                checkpoints.write(number)
            if record:
                yield record
            if ending:
                return
    finally:
        outputs.save_adapter(loop.samples)
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
