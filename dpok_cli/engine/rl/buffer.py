"""The examples that a round's updates learn from: its own and, if asked for, older ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dpok_cli.engine.rl.rollout import Batch


class Buffer:
    """The newest examples: those of the round (``fresh``) first, then older ones."""

    def __init__(self, size: int):
        """Keep ``size`` examples, or a round's if those are more; 0 keeps just the round's."""
        self.size = size
        self.examples: Any = None  # a Batch of the objective's kind
        self.fresh = 0  # the first rows, from the current policy's rollout

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, rows: Tensor) -> Any:
        return self.examples[rows]

    def add(self, fresh: Batch) -> None:
        """Put a round's examples first; the oldest beyond the size are dropped."""
        kept = fresh
        if self.size and self.examples is not None:
            kept = type(fresh).cat([fresh, self.examples])[: max(self.size, len(fresh))]
        self.examples, self.fresh = kept, len(fresh)

    def minibatches(self, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Yield batches of row numbers, long (batch_size,) or fewer, without end.

        Every row is used once, in random order, before any is repeated.
        """
        random = torch.Generator().manual_seed(seed)
        while True:
            yield from torch.randperm(len(self), generator=random).split(batch_size)

    def state_dict(self) -> dict[str, Any]:
        kept = self.size and self.examples is not None
        return {"fresh": self.fresh, "examples": self.examples.state_dict() if kept else {}}

    def load_state_dict(
        self, state: dict[str, Any], kind: type[Batch], device: torch.device
    ) -> None:
        """Load examples of ``kind`` onto ``device``."""
        self.fresh = state["fresh"]
        if state["examples"]:
            self.examples = kind.of_state(state["examples"], device)
