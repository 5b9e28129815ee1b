"""Encoded prompts, as a base's denoiser takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = Tensor | slice | list[int]


@dataclass(frozen=True)
class Text:
    """Embeddings of B prompts."""

    embeds: Tensor  # (B, L, D)
    pooled: Tensor | None = None  # (B, P), for families that have one vector a prompt as well

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Rows) -> Text:
        if isinstance(rows, Tensor):
            rows = rows.to(self.embeds.device)
        return Text(self.embeds[rows], None if self.pooled is None else self.pooled[rows])

    def to(
        self, dtype: torch.dtype | None = None, device: str | torch.device | None = None
    ) -> Text:
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return Text(self.embeds.to(device, dtype), pooled)

    @staticmethod
    def cat(parts: Sequence[Text]) -> Text:
        """Return the rows of several texts, one after another."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Text(
            torch.cat([part.embeds for part in parts]), torch.cat(pooled) if pooled else None
        )


@dataclass(frozen=True)
class Conditioning:
    """The texts of B prompts, and that of the negative prompt for guidance."""

    prompts: Text  # B rows
    negative: Text  # one row
    #: The same texts for the reference model; None if the adapter does not change them.
    reference: Conditioning | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Rows) -> Conditioning:
        reference = None if self.reference is None else self.reference[rows]
        return Conditioning(self.prompts[rows], self.negative, reference)

    def to(self, device: torch.device) -> Conditioning:
        reference = None if self.reference is None else self.reference.to(device)
        prompts, negative = (each.to(device=device) for each in (self.prompts, self.negative))
        return Conditioning(prompts, negative, reference)

    def with_negative(self) -> Conditioning:
        """Return B + 1 rows: the prompts, and the negative prompt as the last of them."""
        reference = None if self.reference is None else self.reference.with_negative()
        prompts = Text.cat([self.prompts, self.negative])
        return Conditioning(prompts, self.negative, reference)

    def doubled(self) -> Text:
        """Return 2 B rows for guidance: the negative prompt B times, then the prompts."""
        return Text.cat([self.negative[[0] * len(self)], self.prompts])
