"""Encoded prompts, as a base's denoiser takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Rows = Tensor | slice | list[int]


@dataclass(frozen=True)
class Text:
    """Embeddings of B prompts."""

    embeds: Tensor  # (B, L, D)
    pooled: Tensor | None = None  # (B, P), for families that have one vector a prompt as well
    mask: Tensor | None = None  # (B, L), true where there is a token; None if that is everywhere

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Rows) -> Text:
        if isinstance(rows, Tensor):
            rows = rows.to(self.embeds.device)
        return self._each(lambda part: part[rows])

    def to(
        self, dtype: torch.dtype | None = None, device: str | torch.device | None = None
    ) -> Text:
        return self._each(lambda part: part.to(device, None if part.dtype == torch.bool else dtype))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Text:
        pooled, mask = (None if each is None else change(each) for each in (self.pooled, self.mask))
        return Text(change(self.embeds), pooled, mask)

    def mean(self) -> Tensor:
        """Return the mean of each prompt's embeddings, (B, D) in float32."""
        embeds = self.embeds.float()
        if self.mask is None:
            return embeds.mean(dim=1)
        mask = self.mask.unsqueeze(2)
        return (embeds * mask).sum(dim=1) / mask.sum(dim=1)

    def rows(self) -> list[Tensor]:
        """Return the embeddings of each prompt's tokens, (L, D)."""
        if self.mask is None:
            return list(self.embeds)
        return [row[mask] for row, mask in zip(self.embeds, self.mask, strict=True)]

    def trimmed(self) -> Text:
        """Return the same without what no row has a token in, at the end."""
        if self.mask is None:
            return self
        length = int(self.mask.any(dim=0).nonzero().max()) + 1
        mask = self.mask[:, :length]
        return Text(self.embeds[:, :length], self.pooled, None if mask.all() else mask)

    def padded(self, length: int) -> Text:
        """Return the same with L of ``length``, and a mask."""
        more = length - self.embeds.shape[1]
        mask = self.mask
        if mask is None:
            mask = torch.ones(self.embeds.shape[:2], dtype=torch.bool, device=self.embeds.device)
        embeds = nn.functional.pad(self.embeds, (0, 0, 0, more))
        return Text(embeds, self.pooled, nn.functional.pad(mask, (0, more)))

    @staticmethod
    def cat(parts: Sequence[Text], length: int = 0) -> Text:
        """Return the rows of several texts, one after another; shorter ones are padded.

        With a ``length`` all are padded to it, and have a mask.
        """
        parts = [part for part in parts if len(part)] or parts[:1]
        length = length or Text.common_length(parts)
        if length:
            parts = [part.padded(length) for part in parts]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        masks = [part.mask for part in parts if part.mask is not None]
        return Text(
            torch.cat([part.embeds for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
        )

    @staticmethod
    def common_length(parts: Sequence[Text]) -> int:
        """Return the L that texts have to be padded to; 0 if they need no padding."""
        lengths = {part.embeds.shape[1] for part in parts}
        if len(lengths) > 1 or any(part.mask is not None for part in parts):
            return max(lengths)
        return 0


class Texts:
    """The embeddings of P prompts, of which only the rows of a batch are put together.

    P may be so large that memory cannot hold them twice.
    """

    def __init__(self, prompts: Sequence[Text], none: Text):
        """``prompts`` are P texts of one row; ``none`` is one without rows."""
        self._prompts, self._none = prompts, none
        # Of all of them, so that a row does not depend on its batch.
        self._length = Text.common_length(prompts)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, rows: Rows) -> Text:
        if isinstance(rows, Tensor):
            rows = rows.tolist()
        chosen = (
            self._prompts[rows] if isinstance(rows, slice) else [self._prompts[row] for row in rows]
        )
        return Text.cat([self._none, *chosen], self._length)

    def followed_by(self, text: Text) -> Texts:
        """Return P + 1 rows, of which ``text`` is the last."""
        return Texts([*self._prompts, text], self._none)


@dataclass(frozen=True)
class Conditioning:
    """The texts of B prompts, and that of the negative prompt for guidance."""

    texts: Text | Texts  # B rows
    negative: Text  # one row
    #: The same texts for the reference model; None if the adapter does not change them.
    reference: Conditioning | None = None

    @property
    def prompts(self) -> Text:
        """The texts put together, which are for a batch."""
        return self.texts[:]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Rows) -> Conditioning:
        reference = None if self.reference is None else self.reference[rows]
        return Conditioning(self.texts[rows], self.negative, reference)

    def to(self, device: torch.device) -> Conditioning:
        reference = None if self.reference is None else self.reference.to(device)
        prompts, negative = (each.to(device=device) for each in (self.prompts, self.negative))
        return Conditioning(prompts, negative, reference)

    def with_negative(self) -> Conditioning:
        """Return B + 1 rows: the prompts, and the negative prompt as the last of them."""
        reference = None if self.reference is None else self.reference.with_negative()
        if isinstance(self.texts, Texts):
            return Conditioning(self.texts.followed_by(self.negative), self.negative, reference)
        prompts = Text.cat([self.prompts, self.negative])
        return Conditioning(prompts, self.negative, reference)

    def doubled(self) -> Text:
        """Return 2 B rows for guidance: the negative prompt B times, then the prompts."""
        return Text.cat([self.negative[[0] * len(self)], self.prompts])
