"""human.html: a blind comparison of two models by people.

As in the study of the DPOK paper (Fan et al. 2023, Sec. 5), a rater sees sets of four images of
each model for one prompt, and says which set fits the prompt better and which looks better.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from dpok_cli.engine.evaluation.contenders import BASE
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation, Place
from dpok_cli.engine.evaluation.report.html import template
from dpok_cli.engine.evaluation.report.pictures import picture
from dpok_cli.engine.runs.files import write_text
from dpok_cli.errors import InputError
from dpok_cli.strict_json import dumps

SET = 4  # images of each model on a screen
#: The most sets for one model and prompt, and on the page.
SETS_PER_PROMPT, MAX_SETS = 5, 60


def check_samples(evaluation: Evaluation) -> None:
    """Raise InputError if the evaluation has fewer images than a screen shows of a model."""
    if evaluation.config.samples < SET:
        raise InputError(f"--human shows sets of {SET} images: give --samples {SET} or more.")


def write_human_page(evaluation: Evaluation, folder: EvaluationFolder) -> Path:
    """Write human.html, and human-key.json, which says which model is on which side.

    Returns the page's path. The order of the sets and their sides are random, with a seed from the
    evaluation's settings, so the same evaluation gives the same page. Raises InputError as
    `check_samples`.
    """
    check_samples(evaluation)
    settings = dumps(evaluation.settings(), sort_keys=True).encode()
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
    write_text(folder.key, dumps({"study": study, "sets": key}, indent=2) + "\n")
    write_text(folder.human, page)
    return folder.human


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
