"""Optimizer steps on an adapter: gradients are gathered, clipped and applied, or skipped."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import release_memory
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.distributed import shard
from dpok_cli.engine.lora.adapter import Adapter
from dpok_cli.engine.training.plan import fitting_batch_size
from dpok_cli.errors import TrainingError

Value = TypeVar("Value")

#: Steps in a row whose gradient may be not finite before a run ends. fp16's gradient scaler starts
#: high on purpose and needs some.
MAX_SKIPPED = 20


class Updater:
    """AdamW on the adapter, with its learning-rate schedule, scaler and gradient clipping."""

    def __init__(
        self,
        config: TrainingConfig,
        adapter: Adapter,
        network: nn.Module,
        accelerator: Accelerator,
        steps: int,
        warn: Callable[[str], None] = warnings.warn,
    ):
        """``network`` is what accelerate prepared; ``steps`` are the optimizer steps of the run."""
        self.config, self.adapter, self.network = config, adapter, network
        self.accelerator, self.warn = accelerator, warn
        #: Examples per forward and backward pass, over all processes; 0 until it is chosen.
        self.batch_size = 0 if config.auto_batch_size else config.batch_size
        optimizer = torch.optim.AdamW(
            adapter.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        # accelerate's own wrapper would step the schedule once for every process.
        self.schedule = get_scheduler(
            "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=steps,
        )
        self.optimizer = accelerator.prepare(optimizer)
        self.skipped = 0  # steps, in all
        self._skipped_in_a_row = 0

    @property
    def learning_rate(self) -> float:
        return self.schedule.get_last_lr()[0]

    def accumulate_over(
        self, batches: Sequence[Tensor], compute: Callable[[Tensor], tuple[Tensor, Value]]
    ) -> list[Value]:
        """Add the gradients of a step's loss, the mean over its ``batches`` of rows.

        ``compute`` takes rows of this rank, long (b,), and returns their mean loss, a scalar, with
        anything else; the latter is returned of each pass. The passes are on `batch_size` rows.
        After an out-of-memory error on a GPU that is halved, and the gradients are taken again.
        """
        while True:
            passes = self._passes(batches)
            try:
                return self._accumulate(passes, compute)
            except torch.cuda.OutOfMemoryError:
                size = max(len(rows) for rows, _ in passes)
                # Other ranks would wait for this one's gradients.
                if size == 1 or self.accelerator.num_processes > 1:
                    raise
            # Past the error, which holds what is in memory.
            self.optimizer.zero_grad()
            release_memory()
            self.batch_size = -(-size // 2)
            self.warn(
                f"Out of memory with {size} examples per pass: from here on they are"
                f" {self.batch_size}, and the results are the same up to rounding."
            )

    def _accumulate(
        self,
        passes: Sequence[tuple[Tensor, float]],
        compute: Callable[[Tensor], tuple[Tensor, Value]],
    ) -> list[Value]:
        values = []
        for number, (rows, parts) in enumerate(passes, 1):
            with self.accumulate(last=number == len(passes)):
                loss, value = compute(shard(rows, self.accelerator))
                self.backward(loss / parts)
            values.append(value)
        return values

    def _passes(self, batches: Sequence[Tensor]) -> list[tuple[Tensor, float]]:
        """Return the rows of each pass, and by what its loss is divided."""
        if not self.batch_size:
            self.batch_size = fitting_batch_size(self.config, self.accelerator)
        if len({*map(len, batches)}) == 1:
            batches = [torch.cat([*batches])]
        return [
            (rows, len(batches) * len(batch) / len(rows))
            for batch in batches
            for rows in batch.split(self.batch_size)
        ]

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Hold the forward and backward of one batch of a step; ranks synchronise at the last."""
        with nullcontext() if last else self.accelerator.no_sync(self.network):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those of the step."""
        self.accelerator.backward(loss)

    def step(self) -> Tensor:
        """Take an optimizer step on the gathered gradients; returns their norm before clipping.

        A gradient that is not finite changes nothing: the step is skipped and counted. Raises
        TrainingError after MAX_SKIPPED of them in a row.
        """
        norm = self.accelerator.clip_grad_norm_(
            self.adapter.parameters(), self.config.max_grad_norm
        )
        if finite := bool(norm.isfinite()):
            self._skipped_in_a_row = 0
        else:
            self.skipped += 1
            self._skipped_in_a_row += 1
        if finite or self.config.precision == "fp16":  # whose scaler skips by itself, and adapts
            self.optimizer.step()
            self.schedule.step()
        self.optimizer.zero_grad()
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"The loss or its gradient was not finite {MAX_SKIPPED} times in a row; those steps"
                " were skipped, and the run ends. Use a lower --learning-rate or --alpha, or"
                " --precision fp32."
            )
        return norm

    def state_dict(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": _without_functions(self.schedule.state_dict()),
            "scaler": scaler.state_dict() if scaler else {},
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "batch_size": [*self._given_batch_size, self.batch_size],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(optimizer_state(state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.skipped, self._skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        # As before, so that a resume changes nothing; unless another is asked for.
        *given, used = state.get("batch_size", [0])
        self.batch_size = used if given == self._given_batch_size else self.batch_size

    @property
    def _given_batch_size(self) -> list[int | bool]:
        return [self.config.batch_size, self.config.auto_batch_size]


def optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state from a checkpoint as torch takes it: with whole-number keys."""
    return state | {"state": {int(key): value for key, value in state["state"].items()}}


def _without_functions(state: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule's state without its functions, which are rebuilt from the config."""
    kinds = (int, float, str, bool, list, type(None))
    return {key: value for key, value in state.items() if isinstance(value, kinds)} | {
        "lr_lambdas": [None] * len(state.get("lr_lambdas", []))
    }
