"""Check a reward on two images: whether it loads and scores, and how fast."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel

SIZE = 256
PROMPTS = ["a cat", "a dog"]  # the tiny world knows them too
MOST_IMAGES = 16
MOST_COMPARED = 4


@dataclass(frozen=True)
class Check:
    """The result of a check."""

    load_seconds: float
    scores: tuple[float, float]  # of a colour gradient and of noise
    images_per_second: float
    batch_size: int  # images per call in the speed measurement
    peak_memory: int  # bytes: tensors on the GPU, or the whole process on the CPU


def check(reward: RewardModel) -> Check:
    """Load the reward, score two images of 256 x 256, and time a batch.

    Raises ``RewardError`` if it fails, scores outside its range, or declares itself differentiable
    but gives no gradients.
    """
    cuda = torch.device(reward.device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(reward.device)
    start = time.perf_counter()
    reward.prepare()
    loaded = time.perf_counter()
    images = _pictures().to(reward.device)
    texts = PROMPTS[:1] * 2 if reward.compares else PROMPTS  # so that there are two to compare
    scores = reward.score(images, texts).tolist()
    if reward.range and not all(reward.range[0] <= score <= reward.range[1] for score in scores):
        low, high = reward.range
        shown = " and ".join(f"{score:g}" for score in scores)
        raise RewardError(f"{reward.name}: scored {shown}, outside its range {low:g} to {high:g}")
    if reward.differentiable:
        _check_gradients(reward, images, texts)
    count = MOST_COMPARED if reward.compares else min(reward.batch_size, MOST_IMAGES)
    batch, prompts = images[torch.arange(count) % 2], [texts[n % 2] for n in range(count)]
    before = time.perf_counter()
    reward.score(batch, prompts).tolist()  # waits for the device
    speed = count / (time.perf_counter() - before)
    memory = torch.cuda.max_memory_allocated(reward.device) if cuda else _process_memory()
    return Check(loaded - start, (scores[0], scores[1]), speed, count, memory)


def _pictures() -> Tensor:
    """A colour gradient and noise, (2, 3, SIZE, SIZE)."""
    ramp = torch.linspace(0, 1, SIZE)
    across = ramp.expand(SIZE, SIZE)
    gradient = torch.stack([across, across.T, 1 - across])
    noise = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return torch.stack([gradient, noise])


def _check_gradients(reward: RewardModel, images: Tensor, prompts: list[str]) -> None:
    images = images.clone().requires_grad_()
    scores = reward.score(images, prompts, grad=True)
    if not scores.requires_grad:
        raise RewardError(
            f"{reward.name}: declares differentiable = True, but its scores have no gradient"
        )
    (gradient,) = torch.autograd.grad(scores.sum(), images, allow_unused=True)
    if gradient is None or not gradient.isfinite().all():
        raise RewardError(f"{reward.name}: its gradients for the images are missing or not finite")


def _process_memory() -> int:
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
