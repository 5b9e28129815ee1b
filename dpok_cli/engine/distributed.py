"""Data-parallel processes: shards of the work, and gathering their results.

A run is the same whatever the number of processes W: `samples_per_round` and `batch_size` count
over all of them, and rank r takes rows r, r + W, r + 2 W, ... of what one process would do alone.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields
from datetime import timedelta
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

from dpok_cli.config.fields import flag
from dpok_cli.errors import DpokError, InputError, StopRequested

#: How long a rank waits in a collective call, as while rank 0 draws grids and evaluates.
TIMEOUT = timedelta(hours=2)

Rows = TypeVar("Rows")
Value = TypeVar("Value")


class Ranks(Protocol):
    """What knows this process's rank: accelerate's `Accelerator`, or its `PartialState`."""

    @property
    def num_processes(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    @property
    def is_main_process(self) -> bool: ...


# ------------------------------------------------------------------------------------- processes


def process_state(device: str = "auto") -> PartialState:
    """Join the process group, if there is one, and return accelerate's view of it.

    Raises InputError where accelerate is configured to shard the model's weights.
    """
    for sharding in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{sharding}", "false").lower() == "true":
            raise InputError(
                f"accelerate is configured for {sharding}, with which dpok cannot train an adapter:"
                " give accelerate launch --multi_gpu, or another --config_file."
            )
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    return PartialState(cpu=on_cpu, timeout=TIMEOUT)


def device_of(name: str) -> torch.device:
    """Return the device of a name; "auto" is the one that accelerate finds.

    Raises InputError for a name that torch does not know, or a device that does not exist.
    """
    if name == "auto":
        return process_state().device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".:")
        raise InputError(f"--device {name!r}: {reason}.") from error


def accelerator_for(
    device: torch.device, precision: str, unused: bool = False, **options: Any
) -> Accelerator:
    """Return accelerate's `Accelerator` for a model on ``device`` (its type decides).

    ``precision`` is "fp32", "fp16" or "bf16"; ``options`` are the Accelerator's. ``unused`` says
    that some weights get no gradient, which processes must not wait for.
    """
    process_state(device.type)
    # accelerate keeps the first precision of a process; a notebook may train in another one next.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision={"fp32": "no"}.get(precision, precision),
        kwargs_handlers=[
            # Ranks may call the network unequally often in a rollout, so no call may wait.
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=unused),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
        **options,
    )


def is_main(device: str) -> bool:
    """Return whether this is rank 0, which writes files and prints."""
    return process_state(device).is_main_process


def leave_group(state: PartialState) -> None:
    """Wait for all ranks, then leave the process group: rank 0 may continue alone."""
    state.wait_for_everyone()
    state.destroy_process_group()


# ---------------------------------------------------------------------------------------- shards


def check_divisible(processes: int, **counts: int) -> None:
    """Raise InputError for a count that cannot be sharded evenly over ``processes``."""
    for key, count in counts.items():
        if count % processes:
            raise InputError(
                f"{flag(key)} {count}: {processes} processes cannot share it evenly; make it a"
                f" multiple of {processes}."
            )


def shard(rows: Rows, ranks: Ranks) -> Rows:
    """Return this rank's rows of a tensor (N, ...), or of a list."""
    return rows[ranks.process_index :: ranks.num_processes]  # type: ignore[index]


def unshard(shards: Sequence[Sequence[Value]]) -> list[Value]:
    """Return, from the shards of all ranks, the rows in their order: the inverse of `shard`."""
    longest = max(map(len, shards))
    return [each[row] for row in range(longest) for each in shards if row < len(each)]


# ------------------------------------------------------------------------------------ collectives


def all_gather(part: Rows, accelerator: Accelerator, block: int = 1) -> Rows:
    """Return, from each rank's shard, all N rows in their order.

    ``part`` is a tensor (n, ...) or a dataclass of such; ``block`` neighbouring rows are one row of
    the sharding.
    """
    if accelerator.num_processes == 1:
        return part
    if not isinstance(part, Tensor):
        gathered = (
            all_gather(getattr(part, each.name), accelerator, block)
            for each in fields(part)  # type: ignore[arg-type]
        )
        return type(part)(*gathered)
    by_rank = accelerator.gather(part.contiguous())
    blocks = by_rank.unflatten(0, (accelerator.num_processes, -1, block))
    return blocks.transpose(0, 1).flatten(0, 2)


def all_gather_object(value: Any, ranks: Ranks) -> list[Any]:
    """Return the values of all ranks, in order of rank."""
    return gather_object([value]) if ranks.num_processes > 1 else [value]


def all_gather_result(compute: Callable[[], Value], ranks: Ranks) -> list[Value]:
    """Return what every rank computed; a DpokError or StopRequested on one is raised on all."""
    value: Value | None = None
    error: DpokError | StopRequested | None = None
    try:
        value = compute()
    except (DpokError, StopRequested) as failed:
        error = failed
    results = all_gather_object((value, error), ranks)
    for _, failed_there in results:
        if failed_there:
            raise failed_there
    return [value for value, _ in results]


def run_on_main(compute: Callable[[], Value], ranks: Ranks) -> Value:
    """Return, on all ranks, what rank 0 computed; a DpokError on it is raised on all."""

    def on_main() -> Value | None:
        return compute() if ranks.is_main_process else None

    first, *_ = all_gather_result(on_main, ranks)
    assert first is not None
    return first


@contextmanager
def on_main(context: Callable[[], AbstractContextManager[Any]], ranks: Ranks) -> Iterator[None]:
    """Run a block on all ranks within a context of rank 0; a DpokError there is raised on all."""
    with ExitStack() as stack:

        def enter() -> None:
            if ranks.is_main_process:
                stack.enter_context(context())

        all_gather_result(enter, ranks)
        yield


def any_rank(flag: bool, accelerator: Accelerator) -> bool:
    """Return whether ``flag`` is true on any rank; the same answer on all of them."""
    if accelerator.num_processes == 1:
        return flag
    flags = torch.tensor([float(flag)], device=accelerator.device)
    return bool(accelerator.reduce(flags, "sum").item() > 0)


def all_mean(values: Sequence[Tensor], accelerator: Accelerator) -> float:
    """Return the mean over all ranks of the mean of each tensor in ``values``, of any shapes."""
    mean = torch.stack([value.float().mean() for value in values]).mean()
    return accelerator.reduce(mean, "mean").item()
