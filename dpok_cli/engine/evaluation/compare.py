"""Before and after training: the reference and the policy on the same fresh seeds, scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.evaluation.diversity import Pile, diversity, pixel_distance
from dpok_cli.engine.evaluation.plan import Place
from dpok_cli.engine.evaluation.together import together
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import Sample, Sampler
from dpok_cli.engine.sampling.seeds import FRESH_SEEDS
from dpok_cli.rewards.combined import WeightedReward
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
    weighted sum), each reward in it (one that compares has those before and after in one group of
    each prompt), each of ``held_out``, and "pixel_distance" of images of one
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

        def measure(when: str, kept: Pile) -> dict[str, float]:
            drawn = Sampler(model, config.for_evaluation()).draw(config.prompts, places)
            shown = progress(drawn, len(places), f"Drawing {when} training")
            return _measure(iter(shown), places, model.device, rewards, embedding, config, kept)

        with Pile() as before, Pile() as after:
            summary["after"] = measure("after", after)
            with model.reference():
                summary["before"] = measure("before", before)
            compared = _compare(reward, before, after, places, config.prompts, model.device)
        for when, means in zip(("before", "after"), compared, strict=True):
            summary[when] = _in_order(reward, summary[when] | means)
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
    kept: Pile,
) -> dict[str, float]:
    """Return the mean of each measure of the images that are ``drawn``, a batch at a time.

    If the first of ``rewards`` has some that compare, the images are ``kept`` for those.
    """
    size, samples = config.sample_batch_size, Counter(place.row for place in places)
    scores: dict[str, list[Tensor]] = {}
    spreads: dict[str, list[float]] = {}
    with Pile() as pile:
        for start in range(0, len(places), size):
            batch = list(islice(drawn, size))
            images, prompts = torch.stack([one.image for one in batch]), [it.prompt for it in batch]
            for reward in rewards:
                for name, values in reward.score_alone(images.to(device), prompts).items():
                    scores.setdefault(name, []).append(values)
            if rewards[0].comparing:
                kept.add(images.cpu())
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
    measures = {name: torch.cat(parts).mean().item() for name, parts in scores.items()}
    return measures | {name: sum(values) / len(values) for name, values in spreads.items()}


def _compare(
    reward: WeightedReward,
    before: Pile,
    after: Pile,
    places: Sequence[Place],
    prompts: Sequence[str],
    device: torch.device,
) -> list[dict[str, float]]:
    """Return, before and after, the mean score by each reward that compares them."""
    found: dict[str, list[Tensor]] = {}
    numbers = range(len(places)) if reward.comparing else ()
    for row, own in groupby(numbers, lambda number: places[number].row):
        first, *others = own
        rows = slice(first, first + 1 + len(others))
        images = [before[rows], after[rows]]
        for name in reward.comparing:
            scores = together(reward, name, images, prompts[row], device)
            found.setdefault(name, []).append(scores)
    means = {name: torch.cat(parts, 1).mean(1).tolist() for name, parts in found.items()}
    return [{name: both[when] for name, both in means.items()} for when in (0, 1)]


def _in_order(reward: WeightedReward, means: dict[str, float]) -> dict[str, float]:
    """Return means with their weighted sum, "reward", and those in it first."""
    raw = {name: torch.tensor(means[name]) for name in reward.names}
    return {"reward": reward.combine(raw).total.item(), **{n: means[n] for n in raw}} | means
