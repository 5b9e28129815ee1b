"""Prompts to embeddings: each text is encoded once, and the encoders are loaded just for that."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import nn

from dpok_cli.engine.bases.base import Base
from dpok_cli.engine.bases.conditioning import Conditioning, Text, Texts
from dpok_cli.engine.lora.layers import ADVICE, attach, check_fit, detach
from dpok_cli.engine.lora.weights import Lora
from dpok_cli.errors import InputError

#: Prompts that are encoded at a time.
BATCH = 32

#: Embeddings by prompt, those of a negative prompt apart; on the CPU.
Known = tuple[dict[str, Text], dict[str, Text]]


class TextEncoders:
    """The text encoders of a base, and the embeddings of all texts that they have encoded.

    T5 is twice as large as the denoiser of Stable Diffusion 3.5, so they should not be in memory
    together.
    """

    def __init__(self, base: Base, load: Callable[[], Mapping[str, nn.Module]] | None = None):
        """``load`` returns the encoders, frozen, by their names in the pipeline.

        Without it they are in the pipeline and stay there.
        """
        self.base, self._load = base, load
        self._plain: Known = ({}, {})
        #: With the parts of an adapter: those parts, and the embeddings.
        self._adapted: tuple[Lora, Known] = ({}, ({}, {}))
        self._fingerprint = ""

    def encode(
        self, prompts: Sequence[str], negative: str = "", lora: Lora | None = None, source: str = ""
    ) -> Conditioning:
        """Return the embeddings, on the CPU, of the B prompts and of the negative one.

        ``lora`` are the encoders' parts of an adapter, and ``source`` names it; the embeddings
        without it are then the `Conditioning.reference`. Raises InputError if they do not fit.
        """
        reference = None
        if lora:
            reference = self.encode(prompts, negative)
            if self._adapted[0] is not lora:
                self._adapted = (lora, ({}, {}))
        known = self._adapted[1] if lora else self._plain
        texts, negatives = known
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in texts]
        if missing or negative not in negatives:
            with self.present(lora or {}, source):
                self._encode(missing, negative, known)
        rows = Texts([texts[prompt] for prompt in prompts], negatives[negative][:0])
        return Conditioning(rows, negatives[negative], reference)

    @torch.no_grad()
    def _encode(self, missing: Sequence[str], negative: str, known: Known) -> None:
        for start in range(0, max(1, len(missing)), BATCH):
            chunk = missing[start : start + BATCH]
            encoded, without = (
                each.to(device="cpu") for each in self.base.encode(chunk or [negative], negative)
            )
            rows = [encoded[row : row + 1].trimmed() for row in range(len(chunk))]
            lengths = [row.embeds.shape[1] for row in rows]
            # In one block, since thousands of small ones leave holes in the heap.
            tokens = torch.cat([encoded.embeds[0, :0], *(row.embeds[0] for row in rows)])
            for prompt, row, embeds in zip(chunk, rows, tokens.split(lengths), strict=False):
                known[0][prompt] = replace(row, embeds=embeds.unsqueeze(0))
            known[1][negative] = without.trimmed()[[0]]

    @contextmanager
    def present(self, lora: Lora | None = None, source: str = "") -> Iterator[None]:
        """Within the block the pipeline has its encoders, with the parts of an adapter if given."""
        pipeline, names = self.base.pipeline, self.base.family.encoders
        load = None if self.base.encoders() else self._load
        if load:
            pipeline.register_modules(**load())
        try:
            with ExitStack() as stack:
                for name, part in (lora or {}).items():
                    if (encoder := getattr(pipeline, name, None)) is None:
                        raise InputError(
                            f"The adapter {source} does not fit this model, which has no {name}."
                            f" {ADVICE}"
                        )
                    check_fit(encoder, name, part, source)
                    attach(encoder, part)
                    stack.callback(detach, encoder)
                yield
        finally:
            if load:
                pipeline.register_modules(**dict.fromkeys(names))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the encoders' weights."""
        if not self._fingerprint:
            with self.present():
                digest = hashlib.sha256()
                for encoder in self.base.encoders().values():
                    add_weights(digest, encoder)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def add_weights(digest: "hashlib._Hash", network: nn.Module) -> None:
    """Add the bytes of a network's weights, without those of an adapter, to a digest."""
    for name, weight in network.named_parameters():
        if ".lora_" not in name:
            flat = weight.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
