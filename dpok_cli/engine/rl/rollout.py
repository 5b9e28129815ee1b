"""Rollouts: the policy draws images, and its transitions are kept to learn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from dpok_cli.config import TimestepChoice
from dpok_cli.engine.bases.model import Conditioning, DiffusionModel
from dpok_cli.engine.sampling.step import Denoising, log_prob


@dataclass(frozen=True)
class Trajectories:
    """M samples and the way to them; latents are float32, as the log-probs were taken of them."""

    prompt: Tensor  # (M,) long: which of the run's prompts
    latents: Tensor  # (M, K + 1, C, H, W): x_T, ..., x_0
    log_prob: Tensor  # (M, K); 0 where a step is deterministic
    images: Tensor  # (M, 3, H, W) in [0, 1]

    @staticmethod
    def cat(parts: Sequence["Trajectories"]) -> "Trajectories":
        return Trajectories(
            *(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(parts[0]))
        )


@dataclass(frozen=True)
class Transitions:
    """N single steps of trajectories, in any order."""

    latents: Tensor  # (N, C, H, W): x_t
    next_latents: Tensor  # (N, C, H, W): x_{t-1}
    step: Tensor  # (N,) long: which of the K denoising steps
    prompt: Tensor  # (N,) long
    log_prob: Tensor  # (N,): under the policy that drew it
    reward: Tensor  # (N,): of the trajectory's image
    advantage: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, rows: Tensor | slice) -> "Transitions":
        return Transitions(*(getattr(self, item.name)[rows] for item in fields(self)))

    @staticmethod
    def cat(parts: Sequence["Transitions"]) -> "Transitions":
        return Transitions(
            *(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(parts[0]))
        )


class Step(NamedTuple):
    """What one denoising step came to."""

    latents: Tensor  # (B, C, H, W), float32: x_{t-1}
    mean: Tensor  # (B, C, H, W), float32: its mean
    std: Tensor  # (B, 1, 1, 1), float32: its standard deviation
    output: Tensor  # (B, C, H, W), float32: what the UNet said of x_t, guided


def denoise(
    model: DiffusionModel,
    denoising: Denoising,
    conditioning: Conditioning,
    seeds: Sequence[int],
    guidance_scale: float,
    starts: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Draw one sample a seed, yielding x_T (as a step from nothing) and then each step.

    Every sample has its own random numbers, so it does not depend on the batch it is drawn in;
    they come in the order of ``StableDiffusionPipeline`` given one CPU generator a sample. With
    ``starts`` a sample has the x_T of another seed, its start, and all other noise of its own.
    """

    def generators(seeds: Sequence[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(generators: list[torch.Generator]) -> Tensor:
        drawn = [torch.randn(model.latent_shape, generator=generator) for generator in generators]
        return torch.stack(drawn).to(device)

    own, device = generators(seeds), conditioning.prompts.device
    latents = noise(own)  # drawn with starts, too, so that the steps' noise is the seed's own
    if starts is not None:
        latents = noise(generators(starts))
    ones = torch.ones(len(latents), 1, 1, 1, device=device)
    yield Step(latents, latents, ones, torch.zeros_like(latents))
    for index in range(len(denoising)):
        step = torch.full((len(latents),), index, device=device)
        output = model.predict(latents, denoising.timesteps[step], conditioning, guidance_scale)
        mean, std = denoising.distribution(output, latents, step)
        latents = mean + std * noise(own) if bool(denoising.std[index] > 0) else mean
        yield Step(latents, mean, std, output)


@torch.no_grad()
def rollout(
    model: DiffusionModel,
    denoising: Denoising,
    conditioning: Conditioning,
    prompt: Tensor,
    seeds: Sequence[int],
    guidance_scale: float,
    batch_size: int,
    starts: Sequence[int] | None = None,
) -> Iterator[Trajectories]:
    """Draw one trajectory a seed, ``batch_size`` at a time, yielding them as they are drawn.

    ``prompt`` (M,) are rows of ``conditioning``; ``starts`` are seeds of x_T, if not the samples'.
    """
    stochastic = set(denoising.stochastic.tolist())
    for first in range(0, len(seeds), batch_size):
        batch = slice(first, first + batch_size)
        rows, texts, shared = prompt[batch], conditioning[prompt[batch]], starts and starts[batch]
        steps = denoise(model, denoising, texts, seeds[batch], guidance_scale, shared)
        path, log_probs = [next(steps).latents], []
        for index, (latents, mean, std, _) in enumerate(steps):
            path.append(latents)
            likely = log_prob(latents, mean, std) if index in stochastic else torch.zeros_like(std)
            log_probs.append(likely.flatten())
        images = model.decode(path[-1])
        yield Trajectories(rows, torch.stack(path, 1), torch.stack(log_probs, 1), images)


def choose_steps(
    samples: int,
    stochastic: Tensor,
    fraction: float,
    choice: TimestepChoice,
    generator: torch.Generator,
) -> Tensor:
    """Choose a share of the stochastic steps for each trajectory: long (M, kept).

    ``stochastic`` holds the steps to choose from, the noisiest first; ``fraction`` is in (0, 1],
    and at least one step a trajectory is taken. By ``choice`` they are the "noisiest" ones for all
    trajectories, or "random" ones, drawn anew for each.
    """
    kept = max(1, round(fraction * len(stochastic)))
    if choice == "noisiest":
        return stochastic[:kept].expand(samples, kept)
    order = torch.rand(samples, len(stochastic), generator=generator).argsort(dim=1)
    return stochastic[order[:, :kept].to(stochastic.device)]


def transitions(
    trajectories: Trajectories, rewards: Tensor, advantages: Tensor, steps: Tensor
) -> Transitions:
    """Take the chosen ``steps`` (M, kept) of each trajectory: M * kept transitions.

    ``rewards`` and ``advantages`` are (M,).
    """
    samples, kept = steps.shape
    step = steps.flatten()
    sample = torch.arange(samples, device=step.device).repeat_interleave(kept)
    return Transitions(
        latents=trajectories.latents[sample, step],
        next_latents=trajectories.latents[sample, step + 1],
        step=step,
        prompt=trajectories.prompt[sample],
        log_prob=trajectories.log_prob[sample, step],
        reward=rewards[sample],
        advantage=advantages[sample],
    )
