"""The sampler: prompts and seeds to denoising steps, latents and images.

Rollouts, sample grids, image sets and evaluations all draw here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.bases.denoiser import Denoiser
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.sampling.step import Denoising, Gaussian, with_window
from dpok_cli.errors import NotFiniteError


@dataclass(frozen=True)
class Step:
    """One denoising step of B samples: a state, and the action that the policy took there."""

    latents: Tensor  # (B, C, H, W), float32: x_t
    policy: Gaussian  # the distribution over x_{t-1}
    next_latents: Tensor  # (B, C, H, W), float32: x_{t-1}, drawn from it


@dataclass(frozen=True)
class Sample:
    """One image, with its prompt and seed."""

    prompt: str
    seed: int
    image: Tensor  # (3, H, W), float32 in [0, 1], on the CPU


class Sampler:
    """Draws from a model with one set of sampler settings."""

    def __init__(
        self,
        model: DiffusionModel,
        config: SamplingConfig,
        denoiser: Denoiser | None = None,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        stop: Callable[[], bool] = lambda: False,
    ):
        """Take the settings of ``config``: steps, eta, guidance, batch size and negative prompt.

        ``denoiser`` is called in place of the model's own, in the context of ``autocast``. Once
        ``stop()`` is true, drawing ends with StopRequested, between two layers of the network.
        Raises InputError for steps that the model's schedule cannot give, or a negative prompt that
        it does not take.
        """
        model.base.check_negative(config.negative_prompt)
        self.model, self.config, self.stop = model, config, stop
        self.denoiser = denoiser or model.denoiser
        self.autocast = autocast
        schedule = model.base.schedule(config.num_inference_steps, model.latent_shape)
        if config.window:
            schedule = with_window(schedule, config.eta, *config.window)
        self.denoising = Denoising.of(schedule, config.eta, model.device)

    # ------------------------------------------------------------------------------------- one step

    def policy(self, latents: Tensor, step: Tensor, conditioning: Conditioning) -> Gaussian:
        """Return the model's distribution over x_{t-1}, from ``latents`` x_t (B, C, H, W).

        ``step``, long (B,), says which of the K denoising steps each row is at.
        """
        output = self.predict(latents, step, conditioning, self.config.guidance_scale)
        return self.denoising.distribution(output, latents, step)

    def predict(
        self, latents: Tensor, step: Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> Tensor:
        """Return the denoiser's output, float32 (B, C, H, W), with some guidance; see `policy`."""
        with self.autocast():
            output = self.denoiser(
                latents, self.denoising.timesteps[step], conditioning, guidance_scale
            )
        return output.float()

    @torch.no_grad()
    def reference(self, latents: Tensor, step: Tensor, conditioning: Conditioning) -> Gaussian:
        """Return what `policy` would without the adapter; takes no gradients."""
        with self.model.reference():
            return self.policy(latents, step, conditioning)

    # ------------------------------------------------------------------------------- whole samples

    def steps(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        start_seeds: Sequence[int] | None = None,
    ) -> Iterator[Step]:
        """Draw one sample per seed, yielding each of its K denoising steps.

        Every sample has its own generator, so it does not depend on the batch it is drawn in; its
        noise comes in the order of ``StableDiffusionPipeline`` given one CPU generator per sample.
        With ``start_seeds`` a sample takes x_T from another seed, and all other noise from its own.
        """
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        conditioning = conditioning.to(self.model.device)
        latents = self._noise(own)  # with start_seeds too, so that the steps' noise is the seed's
        if start_seeds is not None:
            latents = self.noise(start_seeds)
        with self.denoiser.stopping(self.stop):
            for index, std in enumerate(self.denoising.std.tolist()):
                step = torch.full((len(latents),), index, device=latents.device)
                policy = self.policy(latents, step, conditioning)
                drawn = policy.mean + policy.std * self._noise(own) if std > 0 else policy.mean
                yield Step(latents, policy, drawn)
                latents = drawn

    @torch.no_grad()
    def latents(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        """Draw one sample per seed; returns x_0, float32 (B, C, H, W)."""
        *_, last = self.steps(conditioning, seeds)
        return last.next_latents

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), float32 in [0, 1], of latents (B, C, h, w).

        Raises NotFiniteError if a value is NaN or infinite.
        """
        images = self.model.decode(latents)
        if not (latents.isfinite().all() and images.isfinite().all()):
            raise NotFiniteError(
                "The images are not finite. Use --precision fp32, or train with a lower"
                " --learning-rate."
            )
        return images

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
        """Draw an image for each prompt and seed, prompt by prompt, as `draw` does."""
        return self.draw(prompts, ((row, seed) for row in range(len(prompts)) for seed in seeds))

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], wanted: Iterable[tuple[int, int]]) -> Iterator[Sample]:
        """Draw each of the ``wanted`` images: the row of its prompt, and its seed.

        An image depends on its prompt, its seed and the settings, not on its batch. No more than a
        batch is in memory.
        """
        conditioning = self.model.encode(prompts, self.config.negative_prompt)
        wanted = iter(wanted)
        while batch := list(islice(wanted, self.config.sample_batch_size)):
            latents = self.latents(conditioning[[row for row, _ in batch]], [s for _, s in batch])
            for (row, seed), image in zip(batch, self.decode(latents).cpu(), strict=True):
                yield Sample(prompts[row], seed, image)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the noise of each seed, (B, C, H, W), on the device."""
        return self._noise([torch.Generator().manual_seed(seed) for seed in seeds])

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw one (C, H, W) of each generator, on the CPU; returns (B, C, H, W) on the device."""
        shape = self.model.latent_shape
        drawn = [torch.randn(shape, generator=generator) for generator in generators]
        return torch.stack(drawn).to(self.model.device)
