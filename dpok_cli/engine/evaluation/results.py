"""From the scores of all images to results.json: means, differences, win rates and spreads."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from dpok_cli.engine.evaluation.contenders import BASE
from dpok_cli.engine.evaluation.diversity import Pile, diversity, pixel_distance
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.hacking import hacking_warnings
from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.engine.evaluation.statistics import Array, bootstrap_weights, interval, wins
from dpok_cli.errors import DpokError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.embedding import ImageEmbedding
from dpok_cli.rewards.held_out import same_reward

Results = dict[str, Any]
Row = dict[str, Any]

#: The columns of results.csv, which are the keys of a row of results.json.
COLUMNS = (
    "model scope group category prompt measure n mean low high difference difference_low"
    " difference_high win_rate win_low win_high"
).split()

# Fields of the config that have a key of their own in results.json, or change no result.
_ELSEWHERE = {"prompts", "rewards", "device", "offload", "runs_dir"}
_PACKAGES = "torch diffusers transformers peft accelerate numpy pillow".split()


def summarise(
    evaluation: Evaluation,
    reward: WeightedReward,
    folder: EvaluationFolder,
    embedding: ImageEmbedding | None = None,
) -> Results:
    """Return results.json (docs/evaluation.md lists its keys) of a complete evaluation.

    Without an ``embedding`` there is no diversity. The same folder gives the same results. Raises
    DpokError if images are missing.
    """
    if evaluation.config.samples < 2:
        embedding = None  # a single image of a prompt differs from no other
    names = [each.name for each in evaluation.contenders]
    rewards = _rewards(evaluation, reward)
    scores = _scores(evaluation, folder)
    rows = list(_rows(evaluation, rewards, scores, _spreads(evaluation, folder, embedding)))
    config = asdict(evaluation.config)
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
        "diversity": embedding.spec if embedding else None,
        "prompts": [asdict(prompt) for prompt in evaluation.prompts],
        "rows": rows,
        "warnings": hacking_warnings(rows, rewards, names),
        "remarks": list(evaluation.remarks),
        "benchmark": evaluation.benchmark or None,
    }


def to_csv(results: Results) -> str:
    """Return the rows as CSV; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["rows"])
    return text.getvalue()


def _rewards(evaluation: Evaluation, reward: WeightedReward) -> list[dict[str, Any]]:
    """Describe each reward, and say which models were trained on it."""
    return [
        {
            "name": key,
            "spec": spec,
            "higher_is_better": part.higher_is_better,
            # A reward that is scored only because another model was trained on it (such as the
            # JPEG size) says nothing about quality.
            "witness": bool(evaluation.config.rewards) or _reads_weights(part),
            "trained_by": [
                each.name
                for each in evaluation.contenders
                if each.trained_rewards and same_reward(spec, each.trained_rewards)
            ],
        }
        for (key, (part, _)), spec in zip(reward.rewards.items(), evaluation.rewards, strict=True)
    ]


def _reads_weights(reward: RewardModel) -> bool:
    return type(reward).files is not RewardModel.files


def _rows(
    evaluation: Evaluation,
    rewards: Sequence[dict[str, Any]],
    scores: dict[tuple[str, str], Array],
    spreads: dict[str, dict[str, list[float]]],
) -> Iterator[Row]:
    """Yield every row; ``scores`` are (prompts, seeds), ``spreads`` one value a prompt."""
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
            for measure, by_model in spreads.items():
                spread = float(np.mean([by_model[contender.name][row] for row in chosen]))
                yield head | _empty(measure, config.samples * len(chosen)) | {"mean": spread}


def _row(
    measure: str, values: Array, base: Array | None, sign: int, weights: Array, model: str
) -> Row:
    """Summarise values (P, N) of P prompts and N seeds, against the base's of the same.

    Prompts are fixed and seeds random. Images of one seed are correlated, so the bootstrap
    resamples each seed's mean over the prompts.
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
    """Yield each table's scope, group and category, and the rows of its prompts."""
    prompts = evaluation.prompts
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt.group, []).append(row)
    for group, own in groups.items():
        yield "group", group, "", own
    for scope in ("category", "challenge"):
        names = {getattr(prompt, scope): None for prompt in prompts}
        for group, own in groups.items():
            rows: dict[str, list[int]] = {}
            for row in own:
                rows.setdefault(getattr(prompts[row], scope), []).append(row)
            for name in filter(None, names):
                if name in rows:
                    yield scope, group, name, rows[name]
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


def _spreads(
    evaluation: Evaluation, folder: EvaluationFolder, embedding: ImageEmbedding | None
) -> dict[str, dict[str, list[float]]]:
    """Return, by measure and model, how different the images of each prompt are.

    Images are read back prompt by prompt; of single ones there is nothing to return.
    """
    found: dict[str, dict[str, list[float]]] = {}
    seeds, size = evaluation.seeds, evaluation.config.sample_batch_size
    if len(seeds) < 2:
        return found
    with Pile() as images:
        for contender in evaluation.contenders:
            for row in range(len(evaluation.prompts)):
                images.clear()
                for start in range(0, len(seeds), size):
                    places = [Place(row, seed) for seed in seeds[start : start + size]]
                    images.add(folder.read(contender.name, places))
                spreads = {"pixel_distance": pixel_distance(images)}
                if embedding:
                    spreads["diversity"] = diversity(images, embedding.embed, size)
                for measure, value in spreads.items():
                    by_model = found.setdefault(measure, {})
                    by_model.setdefault(contender.name, []).append(value)
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("dpok", *_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
