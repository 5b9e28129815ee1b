"""Rewards that compare, in an evaluation: the images of a prompt, of all models, are one group.

Between the images of one model a win rate is 1/2 on average, whatever the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpok_cli.engine.distributed import device_of
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.rewards.combined import WeightedReward


def compare_drawn(evaluation: Evaluation, reward: WeightedReward, folder: EvaluationFolder) -> int:
    """Add the scores of the rewards that compare to the records of a folder with all images.

    Prompts that have them are not compared again; returns how many were. Raises RewardError.
    """
    compared = 0
    if not reward.comparing:
        return compared
    kept, device = folder.records(), device_of(evaluation.config.device)
    names = [contender.name for contender in evaluation.contenders]
    for row, prompt in enumerate(evaluation.prompts):
        places = [Place(row, seed) for seed in evaluation.seeds]
        records = [kept[name, place] for name in names for place in places]
        if all(name in record["scores"] for record in records for name in reward.comparing):
            continue
        images = [folder.read(name, places).float() / 255 for name in names]
        for name in reward.comparing:
            values = together(reward, name, images, prompt.text, device)
            for record, value in zip(records, values.flatten().tolist(), strict=True):
                record["scores"][name] = value
        folder.write(records)
        compared += 1
    return compared


def together(
    reward: WeightedReward,
    name: str,
    images: Sequence[Tensor],
    prompt: str,
    device: str | torch.device,
) -> Tensor:
    """Return scores (M, N) by one reward of images of one prompt: M models, (N, 3, H, W) each.

    The images of a seed are neighbours in the group. Raises RewardError.
    """
    group = torch.stack(list(images), 1).flatten(0, 1)
    scores = reward.score_one(name, group.to(device), [prompt] * len(group))
    return scores.view(-1, len(images)).T.cpu()
