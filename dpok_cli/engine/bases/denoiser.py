"""The denoising network with prompts and guidance, and a count of its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpok_cli.engine.lora.adapter import Adapter
from dpok_cli.errors import StopRequested


@dataclass(frozen=True)
class Conditioning:
    """Text embeddings of B prompts, and of the negative prompt for guidance."""

    prompts: Tensor  # (B, L, D)
    negative: Tensor  # (1, L, D)
    #: The same texts for the reference model; None if the adapter does not change them.
    reference: Conditioning | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Tensor | slice | list[int]) -> Conditioning:
        reference = None if self.reference is None else self.reference[rows]
        return Conditioning(self.prompts[rows], self.negative, reference)


class Denoiser:
    """Predicts the noise (or v, or x_0) in latents, and counts its evaluations."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, adapter: Adapter):
        """``network`` may be wrapped for many processes; ``dtype`` is its input's.

        While the ``adapter`` is off, prompts are embedded without it as well.
        """
        self.network, self.dtype, self.adapter = network, dtype, adapter
        #: Rows that went through the network so far; guidance takes two a sample.
        self.evaluations = 0

    @contextmanager
    def stopping(self, stop: Callable[[], bool]) -> Iterator[None]:
        """Within the block an evaluation raises StopRequested before its next block of layers once
        ``stop()`` is true; with a large image it may take minutes."""

        def ask(*_: object) -> None:
            if stop():
                raise StopRequested

        lists = [each for each in self.network.modules() if isinstance(each, nn.ModuleList)]
        blocks = [block for each in lists for block in each]
        hooks = [block.register_forward_pre_hook(ask) for block in blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> Tensor:
        """Return the guided output, float32 (B, C, H, W), for latents at timesteps (B,).

        Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) runs both halves through
        the network in one batch; a ``guidance_scale`` of 1 or less turns it off.
        """
        if not self.adapter.enabled and conditioning.reference is not None:
            conditioning = conditioning.reference
        guided = guidance_scale > 1
        prompt_embeds = conditioning.prompts
        if guided:
            negative = conditioning.negative.expand(len(prompt_embeds), -1, -1)
            prompt_embeds = torch.cat([negative, prompt_embeds])
            latents, timesteps = latents.repeat(2, 1, 1, 1), timesteps.repeat(2)
        self.evaluations += len(latents)
        noisy, prompt_embeds = latents.to(self.dtype), prompt_embeds.to(self.dtype)
        output = self.network(noisy, timesteps, prompt_embeds).sample.float()
        if guided:
            without, with_prompt = output.chunk(2)
            output = without + guidance_scale * (with_prompt - without)
        return output
