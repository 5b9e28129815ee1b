"""Before and after: the reference and the policy drawn from the same fresh seeds, and scored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import sample
from dpok_cli.rewards.combined import WeightedReward

#: Fresh seeds are this far from those that training draws.
FRESH_SEEDS = 10**9


def compare(
    model: DiffusionModel,
    reward: WeightedReward,
    config: TrainingConfig,
    run: RunFolder | None = None,
    held_out: WeightedReward | None = None,
) -> dict[str, Any]:
    """Draw `evaluation_samples` images, spread over the prompts, before and after training.

    Returns "seeds", "prompts", and as "before" and "after": the mean of the weighted sum
    ("reward"), of each reward in it and of each that was held out, and the "diversity" of images of
    one prompt. With a ``run`` folder this is its summary.json. Nothing is drawn for 0 samples.
    """
    each = -(-config.evaluation_samples // len(config.prompts))
    seeds = [FRESH_SEEDS + number for number in range(each)]
    summary: dict[str, Any] = {"seeds": seeds, "prompts": list(config.prompts)}
    if seeds:
        summary["after"] = _measure(model, reward, held_out, config, seeds)
        with model.reference():
            summary["before"] = _measure(model, reward, held_out, config, seeds)
    if run:
        run.write_summary(summary)
    return summary


def _measure(
    model: DiffusionModel,
    reward: WeightedReward,
    held_out: WeightedReward | None,
    config: TrainingConfig,
    seeds: Sequence[int],
) -> dict[str, float]:
    drawn = list(sample(model, config.prompts, seeds, config))
    prompts = [one.prompt for one in drawn]
    images = torch.stack([one.image for one in drawn])
    on_device = images.to(model.device)
    scores = reward.score(on_device, prompts)
    raw = scores.raw | (held_out.score(on_device, prompts).raw if held_out else {})
    by_prompt = images.unflatten(0, (len(config.prompts), len(seeds)))
    return {
        "reward": scores.total.mean().item(),
        **{name: values.mean().item() for name, values in raw.items()},
        "diversity": sum(diversity(group) for group in by_prompt) / len(by_prompt),
    }


def diversity(images: Tensor) -> float:
    """Return the mean over pairs of the root-mean-square pixel distance, in [0, 1]; 0 for one."""
    if len(images) < 2:
        return 0.0
    flat = images.flatten(1)
    distances = torch.pdist(flat) / flat.shape[1] ** 0.5
    return distances.mean().item()
