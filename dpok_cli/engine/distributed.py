"""Many processes that train one adapter: who draws what, and how it comes together again.

A run is the same whatever the number of processes: `samples_per_round` and `batch_size` count over
all of them, and process r of W takes the rows r, r + W, r + 2 W, ... of what one would do alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

import torch
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    PartialState,
)
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.device import PATIENCE, process_state
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.errors import DpokError, InputError

Rows = TypeVar("Rows")
Value = TypeVar("Value")


class Processes(Protocol):
    """What knows of the other processes: accelerate's `Accelerator`, or its bare state."""

    @property
    def num_processes(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    @property
    def is_main_process(self) -> bool: ...


def accelerator_for(config: TrainingConfig, on_cpu: bool, **options: Any) -> Accelerator:
    """Return accelerate's view of this run's processes, in the config's precision."""
    process_state(config.device)
    # accelerate keeps a process's first precision; a notebook may go on in another.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=on_cpu,
        mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
        kwargs_handlers=[
            # Rollouts forward as often as a process needs, so a forward must not wait for others.
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
        **options,
    )


def check_shares(processes: int, **counts: int) -> None:
    """Raise InputError for a count that the processes cannot share evenly."""
    for key, count in counts.items():
        if count % processes:
            raise InputError(
                f"{key} = {count}: {processes} processes cannot share it evenly; make it a multiple"
                f" of {processes}."
            )


def own(rows: Rows, accelerator: Processes) -> Rows:
    """Return this process's share of a tensor's rows, or of a list."""
    return rows[accelerator.process_index :: accelerator.num_processes]  # type: ignore[index]


def together(part: Rows, accelerator: Accelerator, block: int = 1) -> Rows:
    """Return, from each process's share of N rows, all of them in their order: undoes `own`.

    ``part`` is a tensor (n, ...) or a dataclass of such; ``block`` neighbouring rows count as one.
    """
    if accelerator.num_processes == 1:
        return part
    if not isinstance(part, Tensor):
        gathered = (
            together(getattr(part, each.name), accelerator, block)
            for each in fields(part)  # type: ignore[arg-type]
        )
        return type(part)(*gathered)
    by_process = accelerator.gather(part.contiguous())
    blocks = by_process.unflatten(0, (accelerator.num_processes, -1, block))
    return blocks.transpose(0, 1).flatten(0, 2)


def all_objects(value: Any, accelerator: Processes) -> list[Any]:
    """Return every process's value, in their order."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def all_or_error(compute: Callable[[], Value], accelerator: Processes) -> list[Value]:
    """Return what every process computed; an error in one of them is raised in all."""
    value: Value | None = None
    error: DpokError | None = None
    try:
        value = compute()
    except DpokError as failed:
        error = failed
    everyones = all_objects((value, error), accelerator)
    for _, one in everyones:
        if one:
            raise one
    return [value for value, _ in everyones]


def part_ways(state: PartialState) -> None:
    """Wait for the others and leave them; one that ended while they were bound would abort."""
    state.wait_for_everyone()
    state.destroy_process_group()


def in_first(compute: Callable[[], Value], accelerator: Processes) -> Value:
    """Return what the first process computed; an error in it is raised in all."""

    def mine() -> Value | None:
        return compute() if accelerator.is_main_process else None

    first, *_ = all_or_error(mine, accelerator)
    assert first is not None
    return first


def anyone(asks: bool, accelerator: Accelerator) -> bool:
    """Whether one of the processes says so; all of them get the same answer."""
    if accelerator.num_processes == 1:
        return asks
    flag = torch.tensor([float(asks)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)


def mean_over(values: Sequence[Tensor], accelerator: Accelerator) -> float:
    """Return the mean of tensors of any shape, over all processes."""
    mean = torch.stack([value.float().mean() for value in values]).mean()
    return accelerator.reduce(mean, "mean").item()


def create_run(config: TrainingConfig, command: str) -> RunFolder:
    """Make the run folder, once for all processes; raises InputError as `RunFolder.create`."""
    return in_first(lambda: RunFolder.create(config, command), process_state(config.device))


def count() -> int:
    """Return how many processes have met."""
    return PartialState().num_processes


def is_main(device: str) -> bool:
    """Whether this is the process that writes and speaks."""
    return process_state(device).is_main_process
