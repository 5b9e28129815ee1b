"""Optimizer steps on an adapter: gradients are gathered, clipped and applied, or skipped."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.lora.adapter import Adapter
from dpok_cli.errors import TrainingError

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
    ):
        """``network`` is what accelerate prepared; ``steps`` are the optimizer steps of the run."""
        self.config, self.adapter, self.network = config, adapter, network
        self.accelerator = accelerator
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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(optimizer_state(state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.skipped, self._skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]


def optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state from a checkpoint as torch takes it: with whole-number keys."""
    return state | {"state": {int(key): value for key, value in state["state"].items()}}


def _without_functions(state: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule's state without its functions, which are rebuilt from the config."""
    kinds = (int, float, str, bool, list, type(None))
    return {key: value for key, value in state.items() if isinstance(value, kinds)} | {
        "lr_lambdas": [None] * len(state.get("lr_lambdas", []))
    }
