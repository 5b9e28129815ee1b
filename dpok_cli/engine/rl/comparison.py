"""Rewards that compare: a round's images of one prompt, on all ranks, are one group."""

import torch
from accelerate import Accelerator
from torch import Tensor

from dpok_cli.engine.distributed import all_gather, all_gather_result, shard
from dpok_cli.rewards.combined import WeightedReward


def compare_round(
    reward: WeightedReward, images: Tensor, prompts: list[str], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Return the scores (M,) of a round's M images by each reward that compares, by its name.

    ``images`` (M / W, 3, H, W) are this rank's shard, ``prompts`` those of all M. Each rank scores
    the groups of its share of the prompts, so that scores do not depend on the number of ranks.
    Raises RewardError, on all ranks, if a reward fails on one.
    """
    if not reward.comparing:
        return {}
    together = all_gather(images, accelerator)
    mine = set(shard(list(dict.fromkeys(prompts)), accelerator))
    rows = [row for row, prompt in enumerate(prompts) if prompt in mine]

    def score() -> dict[str, Tensor]:
        texts = [prompts[row] for row in rows]
        return {
            name: reward.score_one(name, together[rows], texts).cpu()
            for name in reward.comparing
            if rows
        }

    found = {name: torch.empty(len(prompts)) for name in reward.comparing}
    for of_rank, scores in all_gather_result(lambda: (rows, score()), accelerator):
        for name, values in scores.items():
            found[name][of_rank] = values
    return {name: values.to(images.device) for name, values in found.items()}
