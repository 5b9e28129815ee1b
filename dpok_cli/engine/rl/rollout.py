"""Rollouts: the policy draws images, and its trajectories are kept to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from dpok_cli.config import TimestepChoice
from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.sampling.sampler import Sampler


class Batch:
    """Rows of tensors that belong together: a base for dataclasses whose fields are (N, ...)."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(*(getattr(self, each.name)[rows] for each in fields(self)))  # type: ignore[arg-type]

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Put the rows of several batches together, in their order."""
        names = [each.name for each in fields(cls)]  # type: ignore[arg-type]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Trajectories(Batch):
    """M samples with all their latents, in float32, from which the log-probs were computed.

    For an objective that needs just x_0, ``latents`` are (M, 1, C, H, W) and ``log_prob`` (M, 0).
    """

    prompt: Tensor  # (M,) long: which of the run's prompts
    latents: Tensor  # (M, K + 1, C, H, W): x_T, ..., x_0
    log_prob: Tensor  # (M, K); 0 where a step is deterministic
    images: Tensor  # (M, 3, H, W) in [0, 1]


@dataclass(frozen=True)
class Transitions(Batch):
    """N single steps of trajectories, in any order."""

    latents: Tensor  # (N, C, H, W): x_t
    next_latents: Tensor  # (N, C, H, W): x_{t-1}
    step: Tensor  # (N,) long: which of the K denoising steps
    prompt: Tensor  # (N,) long
    log_prob: Tensor  # (N,): under the policy that drew it
    reward: Tensor  # (N,): of the trajectory's image
    advantage: Tensor  # (N,)


@torch.no_grad()
def rollout(
    sampler: Sampler,
    conditioning: Conditioning,
    prompt: Tensor,
    seeds: Sequence[int],
    start_seeds: Sequence[int] | None = None,
    whole: bool = True,
) -> Iterator[Trajectories]:
    """Draw one trajectory per seed, yielding them batch by batch as they are drawn.

    ``prompt`` (M,) are rows of ``conditioning``; ``start_seeds`` are those of x_T, if not the
    samples' own. Unless ``whole``, just x_0 of each trajectory is kept.
    """
    stochastic = set(sampler.denoising.stochastic.tolist())
    for start in range(0, len(seeds), sampler.config.sample_batch_size):
        batch = slice(start, start + sampler.config.sample_batch_size)
        rows, starts = prompt[batch], start_seeds[batch] if start_seeds else None
        path, log_probs = [], []
        for index, step in enumerate(sampler.steps(conditioning[rows], seeds[batch], starts)):
            if whole:
                density = step.policy.log_prob(step.next_latents) if index in stochastic else None
                log_probs.append(rows.new_zeros(len(rows)).float() if density is None else density)
                path.append(step.latents)
        path.append(step.next_latents)
        images = sampler.decode(step.next_latents)
        likely = torch.stack(log_probs, 1) if whole else images.new_zeros(len(rows), 0)
        yield Trajectories(rows, torch.stack(path, 1), likely, images)


def steps_kept(stochastic: int, fraction: float) -> int:
    """Return how many of a trajectory's stochastic steps are trained on."""
    return max(1, round(fraction * stochastic))


def choose_steps(
    samples: int,
    stochastic: Tensor,
    fraction: float,
    choice: TimestepChoice,
    generator: torch.Generator,
) -> Tensor:
    """Choose a share of the stochastic steps for each trajectory: long (M, kept).

    ``stochastic`` holds the steps to choose from, the noisiest first; ``fraction`` is in (0, 1],
    and at least one step per trajectory is taken. ``choice`` says whether they are the "noisiest"
    for all trajectories, or "random" for each.
    """
    kept = steps_kept(len(stochastic), fraction)
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
