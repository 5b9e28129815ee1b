"""People compare: a blind page of A and B (human.html), and what several raters' answers tell.

As in the study of the DPOK paper (Fan et al. 2023, Sec. 5), a rater sees sets of four images of
each model for one prompt, and is asked apart which fits the prompt and which looks better.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import BASE, Evaluation, Place
from dpok_cli.engine.evaluation.report.html import picture, template
from dpok_cli.engine.evaluation.statistics import agreement, bootstrap_weights, interval
from dpok_cli.engine.runs.folder import write_atomically
from dpok_cli.errors import InputError

QUESTIONS = ("alignment", "quality")
CHOICES = ("left", "right", "tie")
SET = 4  # images of each model on a screen
#: The most sets for one model and prompt, and on the whole page.
SETS_PER_PROMPT, MAX_SETS = 5, 60
RESAMPLES = 2000

Key = dict[str, Any]
Answers = dict[str, dict[str, str]]


def write_human_page(evaluation: Evaluation, folder: EvaluationFolder) -> None:
    """Write human.html and, apart from it, human-key.json, which says who is A and who B.

    The order of the sets and their sides are random, from the seed and the evaluation's settings,
    so the same evaluation gives the same page. Raises InputError for fewer than four samples.
    """
    if evaluation.config.samples < SET:
        raise InputError(f"--human shows sets of {SET} images: give --samples {SET} or more.")
    settings = json.dumps(evaluation.settings(), sort_keys=True).encode()
    study = hashlib.sha256(b"human" + settings).hexdigest()[:16]
    random = np.random.default_rng(int(study, 16))
    sets = _sets(evaluation)
    order = random.permutation(len(sets))[:MAX_SETS]
    key, screens = {}, []
    for number in order:
        model, row, seeds = sets[number]
        name = random.bytes(8).hex()
        sides = [BASE, model] if random.random() < 0.5 else [model, BASE]
        prompt = evaluation.prompts[row]
        key[name] = {
            "left": sides[0],
            "right": sides[1],
            "model": model,
            "prompt": prompt.text,
            "group": prompt.group,
            "seeds": seeds,
        }
        pictures = [[picture(folder.image(who, Place(row, s))) for s in seeds] for who in sides]
        screens.append({"id": name, "prompt": prompt.text, "sides": pictures})
    page = template("human.html.j2").render(study=study, screens=screens)
    write_atomically(folder.key, json.dumps({"study": study, "sets": key}, indent=2) + "\n")
    write_atomically(folder.human, page)


def _sets(evaluation: Evaluation) -> list[tuple[str, int, list[int]]]:
    """Return (model, row of the prompt, seeds): each model's first sets of four of each prompt."""
    seeds = list(evaluation.seeds)
    count = min(SETS_PER_PROMPT, len(seeds) // SET)
    return [
        (contender.name, row, seeds[start * SET : (start + 1) * SET])
        for contender in evaluation.contenders
        for row in range(len(evaluation.prompts))
        for start in range(count)
        if contender.name != BASE
    ]


def read_votes(files: Sequence[Path], where: Sequence[Path]) -> tuple[Key, dict[str, Answers]]:
    """Read answer files; returns the key of their study and the answers by rater.

    The key is sought beside the first file and in the folders ``where`` and below. A rater who
    saved twice counts once, with the fuller file. Raises InputError for a file that is no answers,
    or of another study, and if the key is not found.
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
    """Count the votes: for each model, question and group of prompts the win rate over the base.

    A vote for the model is 1, for the base 0, a tie 0.5; a set's value is the mean of its raters',
    and the interval is of the mean over sets (bootstrap over sets). Agreement is how often two
    raters of a set say the same, and Fleiss' kappa.
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
    """Return how many raters of a set chose the model, the base, neither."""
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
        f"The human-key.json of the page {study} is not found. Give --output, the folder that"
        " human.html was written to."
    )


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}.") from error


def _count(answers: Answers) -> int:
    return sum(map(len, answers.values()))
