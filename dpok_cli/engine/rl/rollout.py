"""Rollouts: the policy draws images, and its trajectories are kept to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, get_type_hints

import torch
from torch import Tensor

from dpok_cli.config import TimestepChoice
from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.sampling.step import share_of


class Batch:
    """Rows of tensors that belong together: a base for dataclasses whose fields are (N, ...).

    A field may be a batch of N rows itself.
    """

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(*(getattr(self, each.name)[rows] for each in fields(self)))  # type: ignore[arg-type]

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Put the rows of several batches together, in their order."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(_cat(column) for column in map(list, columns)))

    def state_dict(self) -> dict[str, Any]:
        return {
            name: rows if isinstance(rows, Tensor) else rows.state_dict()
            for name, rows in vars(self).items()
        }

    @classmethod
    def of_state(cls, state: dict[str, Any], device: torch.device) -> Self:
        """Return the batch of a `state_dict`, on ``device``."""
        nested = not all(isinstance(rows, Tensor) for rows in state.values())
        kinds = get_type_hints(cls) if nested else {}
        return cls(
            **{
                name: rows.to(device)
                if isinstance(rows, Tensor)
                else kinds[name].of_state(rows, device)
                for name, rows in state.items()
            }
        )


def _cat(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else type(parts[0]).cat(parts)


@dataclass(frozen=True)
class Trajectories(Batch):
    """M samples with all their latents, in float32, from which the log-probs were computed.

    For an objective that needs just x_0, ``latents`` are (M, 1, C, H, W) and ``log_prob`` (M, 0).
    """

    prompt: Tensor  # (M,) long: which of the run's prompts
    latents: Tensor  # (M, K + 1, C, H, W): x_T, ..., x_0
    log_prob: Tensor  # (M, K); 0 where a step is deterministic
    images: Tensor  # (M, 3, H, W) in [0, 1]
    #: (M,): log p(x_0, ..., x_T) - log p_reference(x_0, ..., x_T), of the steps with noise and
    #: summed over the latent's elements; 0 if it was not asked for.
    log_ratio: Tensor


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


@dataclass(frozen=True)
class NoisedImages(Batch):
    """N drawn images at noise levels of the sampler's steps, in any order."""

    latents: Tensor  # (N, C, H, W): x_t
    target: Tensor  # (N, C, H, W): what a denoiser should predict of it
    old_output: Tensor  # (N, C, H, W): what the policy that drew x_0 predicts
    step: Tensor  # (N,) long: which of the K steps' levels
    prompt: Tensor  # (N,) long
    reward: Tensor  # (N,): of x_0's image
    advantage: Tensor  # (N,)


@dataclass(frozen=True)
class Both(Batch):
    """N transitions, each with a noised image of the same sample."""

    transitions: Transitions
    images: NoisedImages


#: What objectives learn from.
Examples = Transitions | NoisedImages


@torch.no_grad()
def rollout(
    sampler: Sampler,
    conditioning: Conditioning,
    prompt: Tensor,
    seeds: Sequence[int],
    start_seeds: Sequence[int] | None = None,
    whole: bool = True,
    against_reference: bool = False,
) -> Iterator[Trajectories]:
    """Draw one trajectory per seed, yielding them batch by batch as they are drawn.

    ``prompt`` (M,) are rows of ``conditioning``; ``start_seeds`` are those of x_T, if not the
    samples' own. Unless ``whole``, just x_0 of each trajectory is kept. Unless
    ``against_reference``, there is no `log_ratio`.
    """
    stochastic = set(sampler.denoising.stochastic.tolist())
    for start in range(0, len(seeds), sampler.config.sample_batch_size):
        batch = slice(start, start + sampler.config.sample_batch_size)
        rows, starts = prompt[batch], start_seeds[batch] if start_seeds else None
        texts, none = conditioning[rows].to(sampler.model.device), rows.new_zeros(len(rows)).float()
        path, log_probs, log_ratio = [], [], none
        for index, step in enumerate(sampler.steps(texts, seeds[batch], starts)):
            noisy = index in stochastic and (whole or against_reference)
            density = step.policy.log_prob(step.next_latents) if noisy else none
            if noisy and against_reference:
                reference = sampler.reference(step.latents, torch.full_like(rows, index), texts)
                apart = density - reference.log_prob(step.next_latents)
                log_ratio = log_ratio + apart * step.latents[0].numel()
            if whole:
                log_probs.append(density)
                path.append(step.latents)
        path.append(step.next_latents)
        images = sampler.decode(step.next_latents)
        likely = torch.stack(log_probs, 1) if whole else images.new_zeros(len(rows), 0)
        yield Trajectories(rows, torch.stack(path, 1), likely, images, log_ratio)


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
    kept = share_of(len(stochastic), fraction)
    if choice == "noisiest":
        return stochastic[:kept].expand(samples, kept)
    order = torch.rand(samples, len(stochastic), generator=generator).argsort(dim=1)
    return stochastic[order[:, :kept].to(stochastic.device)]


def transitions(
    trajectories: Trajectories, rewards: Tensor, advantages: Tensor, steps: Tensor
) -> Transitions:
    """Take the chosen ``steps`` (M, kept) of each trajectory: M * kept transitions.

    ``rewards`` are (M,), ``advantages`` (M, 2).
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
        advantage=advantages[sample, 0],
    )


def noised_images(
    sampler: Sampler,
    conditioning: Conditioning,
    trajectories: Trajectories,
    rewards: Tensor,
    advantages: Tensor,
    steps: Tensor,
    seeds: Tensor,
    prompt: Tensor,
    guidance_scale: float,
) -> NoisedImages:
    """Noise each x_0 to the levels of some ``steps`` (M, kept), by the noise of ``seeds``.

    ``rewards`` are (M,), ``advantages`` (M, 2); ``seeds`` and ``prompt``, which are rows of
    ``conditioning``, (M, kept). Returns M * kept examples with the predictions, at a
    ``guidance_scale``, of the policy as it is now.
    """
    samples, kept = steps.shape
    step = steps.flatten()
    sample = torch.arange(samples, device=step.device).repeat_interleave(kept)
    x_0, prompt = trajectories.latents[sample, -1], prompt.flatten()
    noised, target = sampler.denoising.corrupt(x_0, sampler.noise(seeds.flatten().tolist()), step)
    with torch.no_grad():
        parts = torch.arange(len(step), device=step.device).split(sampler.config.sample_batch_size)
        outputs = [
            sampler.predict(
                noised[rows],
                step[rows],
                conditioning[prompt[rows]].to(step.device),
                guidance_scale,
            )
            for rows in parts
        ]
    return NoisedImages(
        latents=noised,
        target=target,
        old_output=torch.cat(outputs),
        step=step,
        prompt=prompt,
        reward=rewards[sample],
        advantage=advantages[sample, 1],
    )
