"""The pictures of report.html: pairs of the same seed, by prompt and model, of bounded number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpok_cli.engine.evaluation.contenders import BASE
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.engine.evaluation.report.pictures import MAX_SIDE, THUMBNAIL, picture

Results = dict[str, Any]
Pair = dict[str, Any]

#: The most pairs on a page, and as thumbnails: if few of the first remain for a model and prompt.
MAX_PAIRS, MAX_THUMBNAILS, FEW = 120, 1000, 4
#: The most models and prompts that have pairs on a page.
MAX_BLOCKS = 1000


def blocks(
    results: Results, evaluation: Evaluation, folder: EvaluationFolder
) -> dict[int, list[dict[str, Any]]]:
    """Return, by row of the prompt, a block of pairs for each tuned model, sorted by their change.

    The change is of a reward that the model was trained on, else of the first reward. If there are
    too many pairs, those with the largest rises and falls are shown, or the one in the middle.
    """
    tuned = [each.name for each in evaluation.contenders if each.name != BASE]
    rows = range(max(1, MAX_BLOCKS // max(1, len(tuned))))[: len(evaluation.prompts)]
    shown, side = _room(len(tuned) * len(rows))
    kept = folder.records()
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        for model in tuned:
            trained = [each for each in results["rewards"] if model in each["trained_by"]]
            reward = (trained or results["rewards"])[0]
            name, sign = reward["name"], 1 if reward["higher_is_better"] else -1
            pairs = []
            for seed in evaluation.seeds:
                place = Place(row, seed)
                before, after = (kept[who, place]["scores"][name] for who in (BASE, model))
                pairs.append(
                    {"seed": seed, "before": before, "after": after, "change": after - before}
                )
            pairs.sort(key=lambda pair: (-sign * pair["change"], pair["seed"]))
            for pair in (chosen := _chosen(pairs, shown)):
                place = Place(row, pair["seed"])
                for who, key in ((BASE, "before_image"), (model, "after_image")):
                    pair[key] = picture(folder.image(who, place), side)
            found.setdefault(row, []).append(
                {
                    "model": model,
                    "reward": name,
                    "pairs": chosen,
                    "all": len(pairs),
                    "thumbnails": side == THUMBNAIL,
                }
            )
    return found


def _room(count: int) -> tuple[int, int]:
    """Return the most pairs of each of ``count`` blocks, and the longest side of a picture."""
    if count and MAX_PAIRS // count < FEW:
        return max(1, min(FEW, MAX_THUMBNAILS // count)), THUMBNAIL
    return MAX_PAIRS // max(1, count), MAX_SIDE


def _chosen(pairs: Sequence[Pair], shown: int) -> list[Pair]:
    """Return ``shown`` of the sorted pairs: from both ends, or the middle one."""
    if len(pairs) <= shown:
        return list(pairs)
    if shown == 1:
        return [pairs[len(pairs) // 2]]
    return [*pairs[: -(-shown // 2)], *pairs[-(shown // 2) :]]
