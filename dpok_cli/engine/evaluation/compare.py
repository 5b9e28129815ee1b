"""Before and after training: the reference and the policy on the same fresh seeds, scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.evaluation.diversity import Pile, diversity, pixel_distance
from dpok_cli.engine.evaluation.plan import Place
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import Sample, Sampler
from dpok_cli.engine.sampling.seeds import FRESH_SEEDS
from dpok_cli.rewards.combined import Scores, WeightedReward
from dpok_cli.rewards.embedding import ImageEmbedding, image_embedding

#: Wraps the iterator over the images, given their number and what they are.
Progress = Callable[[Iterator[Sample], int, str], Iterable[Sample]]


def compare(
    model: DiffusionModel,
    reward: WeightedReward,
    config: TrainingConfig,
    run: RunFolder | None = None,
    held_out: WeightedReward | None = None,
    progress: Progress = lambda drawn, total, what: drawn,
) -> dict[str, Any]:
    """Draw `evaluation_samples` images, spread over the prompts, before and after training.

    Returns "prompts", those that are drawn; "samples", the images of each; "seeds", of which a
    prompt has the first; and as "before" and "after" the means over the images: "reward" (the
    weighted sum), each reward in it, each of ``held_out``, and "pixel_distance" of images of one
    prompt, if one has several; with a CLIP on this machine then also "diversity", and its spec as
    "diversity_by". With a ``run`` folder this is its summary.json. Nothing is drawn for 0 samples.
    """
    places = spread_out(config.evaluation_samples, len(config.prompts))
    samples = Counter(place.row for place in places)
    most = max(samples.values(), default=0)
    summary: dict[str, Any] = {
        "seeds": [FRESH_SEEDS + number for number in range(most)],
        "prompts": [config.prompts[row] for row in samples],
        "samples": list(samples.values()),
    }
    if places:
        # A single image of a prompt differs from no other.
        embedding = image_embedding(config.model, model.device, reward) if most > 1 else None
        if embedding:
            summary["diversity_by"] = embedding.spec
        rewards = [reward, held_out] if held_out else [reward]

        def measure(when: str) -> dict[str, float]:
            drawn = Sampler(model, config.for_evaluation()).draw(config.prompts, places)
            shown = progress(drawn, len(places), f"Drawing {when} training")
            return _measure(iter(shown), places, model.device, rewards, embedding, config)

        summary["after"] = measure("after")
        with model.reference():
            summary["before"] = measure("before")
    if run:
        run.write_summary(summary)
    return summary


def spread_out(samples: int, prompts: int) -> list[Place]:
    """Spread so many images over so many prompts, whose numbers differ by one at most.

    If there are fewer images than prompts, those that have one are evenly spaced. The n images of a
    prompt have the first n fresh seeds.
    """
    places = []
    for row, images in groupby(range(samples), lambda image: image * prompts // samples):
        places += [Place(row, FRESH_SEEDS + number) for number, _ in enumerate(images)]
    return places


def _measure(
    drawn: Iterator[Sample],
    places: Sequence[Place],
    device: torch.device,
    rewards: Sequence[WeightedReward],
    embedding: ImageEmbedding | None,
    config: TrainingConfig,
) -> dict[str, float]:
    """Return the mean of each measure of the images that are ``drawn``, a batch at a time.

    "reward" is the weighted sum of the first of ``rewards``.
    """
    size, samples = config.sample_batch_size, Counter(place.row for place in places)
    scores: list[list[Scores]] = [[] for _ in rewards]
    spreads: dict[str, list[float]] = {}
    with Pile() as pile:
        for start in range(0, len(places), size):
            batch = list(islice(drawn, size))
            images, prompts = torch.stack([one.image for one in batch]), [it.prompt for it in batch]
            for reward, parts in zip(rewards, scores, strict=True):
                parts.append(reward.score(images.to(device), prompts))
            rows = [place.row for place in places[start : start + size]]
            for row, own in groupby(range(len(rows)), rows.__getitem__):
                if samples[row] < 2:
                    continue
                pile.add(images[list(own)])
                if len(pile) == samples[row]:
                    spreads.setdefault("pixel_distance", []).append(pixel_distance(pile))
                    if embedding:
                        spread = diversity(pile, embedding.embed, size)
                        spreads.setdefault("diversity", []).append(spread)
                    pile.clear()
    whole = [Scores.cat(parts) for parts in scores]
    measures = {"reward": whole[0].total.mean().item()}
    for each in whole:
        measures |= {name: values.mean().item() for name, values in each.raw.items()}
    return measures | {name: sum(values) / len(values) for name, values in spreads.items()}
