"""From the scores of every image to results.json: means, changes, wins, spread, warnings."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import BASE, Evaluation, Place
from dpok_cli.engine.evaluation.statistics import (
    Array,
    PairDistance,
    bootstrap_weights,
    interval,
    wins,
)
from dpok_cli.errors import DpokError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.held_out import same_reward

if TYPE_CHECKING:
    from torch import Tensor

Results = dict[str, Any]
Row = dict[str, Any]

#: The columns of results.csv, which are the keys of a row of results.json.
COLUMNS = (
    "model scope group category prompt measure n mean low high difference difference_low"
    " difference_high win_rate win_low win_high"
).split()

# Of the config: what has a key of its own, and where things lie.
_ELSEWHERE = {"prompts", "rewards", "device", "runs_dir"}
_PACKAGES = "torch diffusers transformers peft accelerate numpy pillow".split()


def summarise(
    evaluation: Evaluation,
    reward: WeightedReward,
    folder: EvaluationFolder,
    embedding: tuple[str, Callable[[Tensor], Tensor]] | None = None,
    remarks: Sequence[str] = (),
) -> Results:
    """Return results.json (docs/evaluation.md has its keys) of an evaluation that is complete.

    ``embedding`` is CLIP's name and its map from images to unit vectors; without one the diversity
    is of pixels. ``remarks`` are passed on. The same folder gives the same results.
    """
    names = [each.name for each in evaluation.contenders]
    rewards = [
        {
            "name": key,
            "spec": spec,
            "higher_is_better": part.higher_is_better,
            # What came in only because another model was trained on it, as a JPEG's size may,
            # is no sign of quality.
            "witness": bool(evaluation.config.rewards) or _reads_weights(part),
            "trained_by": [
                each.name
                for each in evaluation.contenders
                if each.trained_rewards and same_reward(spec, each.trained_rewards)
            ],
        }
        for (key, (part, _)), spec in zip(reward.rewards.items(), evaluation.rewards, strict=True)
    ]
    scores = _scores(evaluation, folder)
    config = asdict(evaluation.config)
    rows = list(_rows(evaluation, rewards, scores, _diversities(evaluation, folder, embedding)))
    return {
        "versions": _versions(),
        "settings": {key: config[key] for key in sorted(config.keys() - _ELSEWHERE)},
        "seeds": [evaluation.seeds[0], evaluation.seeds[-1]],
        "models": [
            {
                "name": each.name,
                "adapter": str(each.adapter) if each.adapter else None,
                "sha256": each.digest(),
                "trained_prompts": list(each.trained_prompts),
                "trained_rewards": list(each.trained_rewards),
            }
            for each in evaluation.contenders
        ],
        "rewards": rewards,
        "diversity": embedding[0] if embedding else "pixels",
        "prompts": [asdict(prompt) for prompt in evaluation.prompts],
        "rows": rows,
        "warnings": warnings(rows, rewards, names),
        "remarks": list(remarks),
    }


def to_csv(results: Results) -> str:
    """Return the rows as CSV; what a row has not is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["rows"])
    return text.getvalue()


def warnings(rows: Sequence[Row], rewards: Sequence[dict[str, Any]], models: Sequence[str]) -> list:
    """Say where a held-out score falls while one that was trained on rises.

    Each counts if the 95 % interval of its difference to the base leaves 0 out, over the prompts of
    one group. A model whose training is not known gets no warning. Held out are the rewards that
    read weights and those that were asked for.
    """
    found = []
    for model in models:
        for group in dict.fromkeys(row["group"] for row in rows):
            rising, falling = [], []
            for reward in rewards:
                (row,) = (
                    row
                    for row in rows
                    if (row["model"], row["scope"], row["group"], row["measure"])
                    == (model, "group", group, reward["name"])
                )
                if row["difference"] is None:
                    continue
                low, high = row["difference_low"], row["difference_high"]
                if not reward["higher_is_better"]:
                    low, high = -high, -low
                if model in reward["trained_by"] and low > 0:
                    rising.append(row)
                elif model not in reward["trained_by"] and reward["witness"] and high < 0:
                    falling.append(row)
            if rising and falling:
                found.append(
                    {
                        "kind": "possible reward hacking",
                        "model": model,
                        "group": group,
                        "falling": [row["measure"] for row in falling],
                        "text": (
                            f"Possible reward hacking by {model} on {group} prompts:"
                            f" {_changes(falling)}, held out, while {_changes(rising)}, trained on."
                        ),
                    }
                )
    return found


def _reads_weights(reward: RewardModel) -> bool:
    return type(reward).files is not RewardModel.files


def _changes(rows: Sequence[Row]) -> str:
    return " and ".join(f"{row['measure']} changes by {row['difference']:+.3g}" for row in rows)


def _rows(
    evaluation: Evaluation,
    rewards: Sequence[dict[str, Any]],
    scores: dict[tuple[str, str], Array],
    diversities: dict[str, list[float]],
) -> Iterator[Row]:
    config = evaluation.config
    weights = bootstrap_weights(config.samples, config.resamples, config.seed)
    signs = {each["name"]: 1 if each["higher_is_better"] else -1 for each in rewards}
    for scope, group, category, chosen in _scopes(evaluation):
        prompt = evaluation.prompts[chosen[0]].text if scope == "prompt" else ""
        for contender in evaluation.contenders:
            head = {
                "model": contender.name,
                "scope": scope,
                "group": group,
                "category": category,
                "prompt": prompt,
            }
            for measure, sign in signs.items():
                values = scores[contender.name, measure][chosen]  # (P, N)
                base = scores[BASE, measure][chosen]
                yield head | _row(measure, values, base, sign, weights, contender.name)
            if contender.name != BASE and (contender.name, "kl") in scores:
                values = scores[contender.name, "kl"][chosen]
                yield head | _row("kl", values, None, 1, weights, contender.name)
            spread = float(np.mean([diversities[contender.name][row] for row in chosen]))
            yield head | _empty("diversity", config.samples * len(chosen)) | {"mean": spread}


def _row(
    measure: str, values: Array, base: Array | None, sign: int, weights: Array, model: str
) -> Row:
    """Measure values (P, N) of P prompts and N seeds, against the base's of the same.

    The prompts are taken as they are and the seeds as drawn at random. Images of one seed belong
    together, so it is each seed's mean over the prompts that the bootstrap draws.
    """
    row = _empty(measure, values.size)
    row["mean"], (row["low"], row["high"]) = values.mean(), interval(values.mean(0), weights)
    if base is not None and model != BASE:
        change = values - base
        row["difference"] = change.mean()
        row["difference_low"], row["difference_high"] = interval(change.mean(0), weights)
        won = wins(sign * values, sign * base)
        row["win_rate"], (row["win_low"], row["win_high"]) = (
            won.mean(),
            interval(won.mean(0), weights),
        )
    return {key: value if key == "measure" else _number(value) for key, value in row.items()}


def _empty(measure: str, n: int) -> Row:
    return {"measure": measure, "n": n} | dict.fromkeys(COLUMNS[COLUMNS.index("mean") :])


def _number(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else float(value)


def _scopes(evaluation: Evaluation) -> Iterator[tuple[str, str, str, list[int]]]:
    """Yield each table's scope, group and category and the rows of its prompts."""
    prompts = evaluation.prompts
    groups = list(dict.fromkeys(prompt.group for prompt in prompts))
    for group in groups:
        own = [row for row, prompt in enumerate(prompts) if prompt.group == group]
        yield "group", group, "", own
    for group in groups:
        for category in dict.fromkeys(prompt.category for prompt in prompts if prompt.category):
            own = [
                row
                for row, prompt in enumerate(prompts)
                if (prompt.group, prompt.category) == (group, category)
            ]
            if own:
                yield "category", group, category, own
    for row, prompt in enumerate(prompts):
        yield "prompt", prompt.group, prompt.category, [row]


def _scores(evaluation: Evaluation, folder: EvaluationFolder) -> dict[tuple[str, str], Array]:
    """Return (prompts, seeds) scores by model and measure."""
    kept = folder.records()
    if len(kept) < evaluation.total:
        raise DpokError(f"{folder.path} holds {len(kept)} of {evaluation.total} images.")
    shape = (len(evaluation.prompts), evaluation.config.samples)
    table: dict[tuple[str, str], Array] = {}
    for (model, place), record in kept.items():
        measures = dict(record["scores"])
        if record["kl"] is not None:
            measures["kl"] = record["kl"]
        column = place.seed - evaluation.seeds[0]
        for measure, value in measures.items():
            values = table.setdefault((model, measure), np.full(shape, np.nan))
            values[place.row, column] = value
    return table


def _diversities(
    evaluation: Evaluation,
    folder: EvaluationFolder,
    embedding: tuple[str, Callable[[Tensor], Tensor]] | None,
) -> dict[str, list[float]]:
    """Return by model, for each prompt, how far apart its images are.

    With an embedding that is the mean cosine distance of two images (0 to 2); without, the root of
    the mean squared difference of two images' pixels (0 to 1). Images are read back batch by batch.
    """
    size = evaluation.config.sample_batch_size
    found: dict[str, list[float]] = {}
    for contender in evaluation.contenders:
        for row in range(len(evaluation.prompts)):
            pairs, numbers = PairDistance(), 1
            for start in range(0, len(evaluation.seeds), size):
                images = _read(
                    folder, contender.name, [Place(row, s) for s in evaluation.seeds[start:][:size]]
                )
                numbers = images[0].numel()
                vectors = embedding[1](images) if embedding else images
                pairs.add(vectors.flatten(1).cpu().numpy())
            squared = pairs.mean()
            distance = squared / 2 if embedding else (squared / numbers) ** 0.5
            found.setdefault(contender.name, []).append(distance)
    return found


def _read(folder: EvaluationFolder, model: str, places: Sequence[Place]) -> Tensor:
    """Read images back as (B, 3, H, W) in [0, 1]."""
    import torch
    from PIL import Image

    images = []
    for place in places:
        with Image.open(folder.image(model, place)) as picture:
            images.append(torch.from_numpy(np.array(picture.convert("RGB"))))
    return torch.stack(images).permute(0, 3, 1, 2) / 255


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("dpok", *_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
