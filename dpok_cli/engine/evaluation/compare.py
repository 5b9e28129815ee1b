"""Before and after training: the reference and the policy on the same fresh seeds, scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.evaluation.diversity import diversity, pixel_distance
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.sampling.seeds import FRESH_SEEDS
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.embedding import ImageEmbedding, image_embedding


def compare(
    model: DiffusionModel,
    reward: WeightedReward,
    config: TrainingConfig,
    run: RunFolder | None = None,
    held_out: WeightedReward | None = None,
) -> dict[str, Any]:
    """Draw `evaluation_samples` images, spread over the prompts, before and after training.

    Returns "seeds", "prompts", and as "before" and "after" the means over the images: "reward" (the
    weighted sum), each reward in it, each of ``held_out``, and "pixel_distance" of images of one
    prompt; with a CLIP on this machine also "diversity", and its spec as "diversity_by". With a
    ``run`` folder this is its summary.json. Nothing is drawn for 0 samples.
    """
    each = -(-config.evaluation_samples // len(config.prompts))
    seeds = [FRESH_SEEDS + number for number in range(each)]
    summary: dict[str, Any] = {"seeds": seeds, "prompts": list(config.prompts)}
    if seeds:
        embedding = image_embedding(config.model, model.device, reward)
        if embedding:
            summary["diversity_by"] = embedding.spec
        rewards = [reward, held_out] if held_out else [reward]
        summary["after"] = _measure(model, rewards, embedding, config, seeds)
        with model.reference():
            summary["before"] = _measure(model, rewards, embedding, config, seeds)
    if run:
        run.write_summary(summary)
    return summary


def _measure(
    model: DiffusionModel,
    rewards: Sequence[WeightedReward],
    embedding: ImageEmbedding | None,
    config: TrainingConfig,
    seeds: Sequence[int],
) -> dict[str, float]:
    """Return the mean of each measure; "reward" is the weighted sum of the first of ``rewards``."""
    drawn = list(Sampler(model, config.for_evaluation()).sample(config.prompts, seeds))
    prompts = [one.prompt for one in drawn]
    images = torch.stack([one.image for one in drawn])
    on_device = images.to(model.device)
    scores = [reward.score(on_device, prompts) for reward in rewards]
    measures = {"reward": scores[0].total.mean().item()}
    for each in scores:
        measures |= {name: values.mean().item() for name, values in each.raw.items()}
    by_prompt = images.unflatten(0, (len(config.prompts), len(seeds)))
    measures["pixel_distance"] = _mean([pixel_distance(group) for group in by_prompt])
    if embedding:
        size = config.sample_batch_size
        spreads = [diversity(group, embedding.embed, size) for group in by_prompt]
        measures["diversity"] = _mean(spreads)
    return measures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
