"""Before and after: the reference and the policy drawn from the same fresh seeds, and scored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpok_cli.config import TrainRLConfig
from dpok_cli.engine.model import DiffusionModel
from dpok_cli.engine.sample import sample
from dpok_cli.rewards.combined import WeightedReward

#: Fresh seeds are this far from those that training draws.
FRESH_SEEDS = 10**9


def compare(model: DiffusionModel, reward: WeightedReward, config: TrainRLConfig) -> dict[str, Any]:
    """Score ``evaluation_samples`` images, spread over the prompts, before and after training.

    Returns, each "before" and "after", the mean of every reward (and of the weighted sum, as
    "reward") and the mean pairwise pixel distance between images of one prompt, as "diversity".
    """
    seeds = [
        FRESH_SEEDS + number
        for number in range(max(1, config.evaluation_samples // len(config.prompts)))
    ]
    after = _drawn_and_scored(model, reward, config, seeds)
    with model.reference():
        before = _drawn_and_scored(model, reward, config, seeds)
    return {"seeds": seeds, "prompts": list(config.prompts), "before": before, "after": after}


def _drawn_and_scored(
    model: DiffusionModel, reward: WeightedReward, config: TrainRLConfig, seeds: Sequence[int]
) -> dict[str, float]:
    drawn = list(sample(model, config.prompts, seeds, config))
    images = torch.stack([one.image for one in drawn])
    scores = reward.score(images.to(model.device), [one.prompt for one in drawn])
    by_prompt = images.unflatten(0, (len(config.prompts), len(seeds)))
    return {
        "reward": scores.total.mean().item(),
        **{name: values.mean().item() for name, values in scores.raw.items()},
        "diversity": sum(diversity(group) for group in by_prompt) / len(by_prompt),
    }


def diversity(images: Tensor) -> float:
    """Return the mean over pairs of the root-mean-square pixel distance, in [0, 1]; 0 for one."""
    if len(images) < 2:
        return 0.0
    flat = images.flatten(1)
    distances = torch.pdist(flat) / flat.shape[1] ** 0.5
    return distances.mean().item()
