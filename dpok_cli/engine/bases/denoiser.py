"""The denoising network with prompts and guidance, and a count of its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from dpok_cli.engine.bases.base import Base
from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.lora.adapter import Adapter
from dpok_cli.errors import StopRequested


class Denoiser:
    """Predicts what a base's denoiser predicts, guided, and counts its evaluations."""

    def __init__(self, base: Base, network: nn.Module, adapter: Adapter):
        """``network`` is the base's, and may be wrapped for many processes.

        While the ``adapter`` is off, prompts are embedded without it as well.
        """
        self.base, self.network, self.adapter = base, network, adapter
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
        """Return the guided output, float32 (B, C, H, W), for latents at timesteps (B,)."""
        if not self.adapter.enabled and conditioning.reference is not None:
            conditioning = conditioning.reference
        self.evaluations += self.base.rows(guidance_scale) * len(latents)
        return self.base.predict(self.network, latents, timesteps, conditioning, guidance_scale)
