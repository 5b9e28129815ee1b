"""The answers that raters saved from human.html: read, checked and counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpok_cli.engine.evaluation.contenders import BASE
from dpok_cli.engine.evaluation.statistics import agreement, bootstrap_weights, interval
from dpok_cli.errors import InputError
from dpok_cli.inputs import read_text

QUESTIONS = ("alignment", "quality")
CHOICES = ("left", "right", "tie")
RESAMPLES = 2000

Key = dict[str, Any]
Answers = dict[str, dict[str, str]]


def read_votes(files: Sequence[Path], where: Sequence[Path]) -> tuple[Key, dict[str, Answers]]:
    """Read answer files; returns the key of their study and the answers by rater.

    The key is searched for beside the first file and in the folders ``where`` and below. If a rater
    has several files, the one with most answers counts. Raises InputError for a file that holds no
    answers, or answers to another page, and if the key is not found.
    """
    raters: dict[str, Answers] = {}
    study = ""
    key: Key = {}
    for file in files:
        votes = _read_json(file)
        answers = votes.get("answers") if isinstance(votes, dict) else None
        if not isinstance(answers, dict) or not all(
            isinstance(votes.get(name), str) for name in ("study", "rater")
        ):
            raise InputError(f"{file} holds no answers: give files that human.html saved.")
        if not key:
            study = votes["study"]
            key = _find_key(study, [file.resolve().parent, *where])
        if votes["study"] != study:
            raise InputError(f"{file} and {files[0]} are answers to different pages.")
        for name, given in answers.items():
            if name not in key or not isinstance(given, dict):
                raise InputError(f"{file}: {name!r} is no set of images of this page.")
            for question, choice in given.items():
                if question not in QUESTIONS or choice not in CHOICES:
                    raise InputError(f"{file}: {question} = {choice!r} is no answer.")
        rater = votes["rater"]
        if _count(answers) >= _count(raters.get(rater, {})):
            raters[rater] = answers
    return key, raters


def tally(key: Mapping[str, Any], raters: Mapping[str, Answers], seed: int = 0) -> dict[str, Any]:
    """Return the win rate over the base for each model, question and group of prompts.

    A vote for the model is 1, for the base 0, a tie 0.5. The value of a set is the mean over its
    raters; the interval is a bootstrap over sets. Agreement is the share of pairs of raters of a
    set who give the same answer, and Fleiss' kappa.
    """
    rows = []
    models = dict.fromkeys(item["model"] for item in key.values())
    groups = dict.fromkeys(sorted(item["group"] for item in key.values()))
    for model in models:
        for question in QUESTIONS:
            for group in [*groups] if len(groups) == 1 else ["all", *groups]:
                own = {
                    name: item
                    for name, item in key.items()
                    if item["model"] == model and group in ("all", item["group"])
                }
                counts = [_outcomes(name, item, question, raters) for name, item in own.items()]
                row = {"model": model, "question": question, "group": group}
                rows.append(row | _share([each for each in counts if sum(each)], seed))
    return {"raters": len(raters), "rows": rows}


def _outcomes(
    name: str, item: Mapping[str, Any], question: str, raters: Mapping[str, Answers]
) -> tuple[int, int, int]:
    """Return how many raters of a set chose the model, the base and neither."""
    chosen = [
        answers[name][question] for answers in raters.values() if question in answers.get(name, {})
    ]
    who = [item.get(choice, "tie") for choice in chosen]
    return who.count(item["model"]), who.count(BASE), chosen.count("tie")


def _share(counts: Sequence[tuple[int, int, int]], seed: int) -> dict[str, Any]:
    votes = sum(map(sum, counts))
    row: dict[str, Any] = {"sets": len(counts), "votes": votes}
    row |= dict.fromkeys(("win_rate", "win_low", "win_high", "agreement", "kappa"))
    if counts:
        values = np.array([(won + tied / 2) / (won + lost + tied) for won, lost, tied in counts])
        low, high = interval(values, bootstrap_weights(len(values), RESAMPLES, seed))
        observed, kappa = agreement(counts)
        row |= {"win_rate": float(values.mean()), "win_low": float(low), "win_high": float(high)}
        row |= {"agreement": observed, "kappa": kappa}
    return row


def _find_key(study: str, folders: Sequence[Path]) -> Key:
    for folder in folders:
        for file in (folder / "human-key.json", *sorted(folder.glob("**/human-key.json"))):
            if file.is_file():
                found = _read_json(file)
                if isinstance(found, dict) and found.get("study") == study:
                    return dict(found["sets"])
    raise InputError(
        f"The human-key.json of the page {study} is not found. Give --output the folder that"
        " human.html was written to."
    )


def _read_json(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}.") from error


def _count(answers: Answers) -> int:
    return sum(map(len, answers.values()))
