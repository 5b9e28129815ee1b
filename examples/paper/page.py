"""The page of the study: each of the paper's claims, what came out here, and whether it agrees."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from figures import draw, show
from study import Claim, Experiment, PromptSet, Training

from dpok_cli.strict_json import dumps

#: Student's t for an interval of 95 %, by the number of seeds.
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
MEASURES = ("image-reward", "aesthetic", "judge", "diversity")


@dataclass(frozen=True)
class Compared:
    """An experiment's trainings on one prompt set, evaluated in a folder."""

    prompts: PromptSet
    trainings: Sequence[Training]
    folder: Path
    #: Denoiser evaluations by the name of a training.
    evaluations: Mapping[str, int]
    commands: Sequence[str]

    @cached_property
    def results(self) -> dict[str, Any]:
        """The evaluation's results.json."""
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))

    @cached_property
    def _means(self) -> dict[tuple[str, str, str], float]:
        return {
            (row["model"], row["group"], row["measure"]): row["mean"]
            for row in self.results["rows"]
            if row["scope"] == "group"
        }

    def by_seed(self, arm: str, measure: str, group: str) -> list[float]:
        """Return an arm's mean for each seed; the base has the same one for each."""
        seeds = sorted({each.seed for each in self.trainings})
        names = {each.seed: each.name for each in self.trainings if each.arm.name == arm}
        return [self._means[names.get(seed, "base"), group, measure] for seed in seeds]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, with its interval of 95 % where there are two seeds or more."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def margin(self) -> float | None:
        count = len(self.values)
        return T_95[count] * stdev(self.values) / sqrt(count) if count > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.margin is None else f" ± {self.margin:.2f}")


def difference(claim: Claim, compared: Sequence[Compared]) -> Spread:
    """Return how far one arm is above the other, for each seed the mean over the prompt sets."""
    apart = [
        [
            above - below
            for above, below in zip(
                each.by_seed(claim.above, claim.measure, claim.group),
                each.by_seed(claim.below, claim.measure, claim.group),
                strict=True,
            )
        ]
        for each in compared
    ]
    return Spread([mean(of_seed) for of_seed in zip(*apart, strict=True)])


def verdict(spread: Spread) -> str:
    """Return whether a difference agrees with the claim that it is above 0."""
    if spread.margin is None:
        return "one seed"
    if abs(spread.mean) <= spread.margin:
        return "open"
    return "agrees" if spread.mean > 0 else "disagrees"


def write_page(path: Path, found: Sequence[tuple[Experiment, Sequence[Compared]]]) -> None:
    """Write the page, its plots and pictures, and its numbers as JSON, beside each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    claims = [
        (experiment, claim, difference(claim, compared))
        for experiment, compared in found
        for claim in experiment.claims
    ]
    lines = [
        "# The paper's study on the tiny world",
        "",
        "Written by `make paper` (`examples/paper/run.py`). Each row is a claim of Fan et al. 2023"
        " ([arXiv 2305.16381](https://arxiv.org/abs/2305.16381)) or of this project, with the"
        " difference of the two arms that it is about: the mean over the training seeds, with its"
        " interval of 95 %. A claim agrees if the interval is above 0, disagrees if it is below,"
        " and is open otherwise.",
        "",
        "| claim | source | difference | |",
        "|---|---|---|---|",
        *(
            f"| [{claim.text}](#{one.name}) | {claim.source} | {spread} | {verdict(spread)} |"
            for one, claim, spread in claims
        ),
    ]
    for experiment, compared in found:
        lines += ["", f'<a id="{experiment.name}"></a>', "", f"## {experiment.title}"]
        for each in compared:
            lines += ["", *_section(path, experiment, each)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    numbers = [
        {"experiment": one.name, "claim": claim.text, "by_seed": list(spread.values)}
        | {"verdict": verdict(spread)}
        for one, claim, spread in claims
    ]
    path.with_suffix(".json").write_text(dumps(numbers, indent=2), encoding="utf-8")


def _evaluations(arm: str, compared: Compared) -> str:
    taken = [compared.evaluations[each.name] for each in compared.trainings if each.arm.name == arm]
    return f"{mean(taken):,.0f}".replace(",", " ") if taken else "0"


def _section(path: Path, experiment: Experiment, compared: Compared) -> list[str]:
    """Return a table of all arms on one prompt set with its pictures and commands."""
    groups = ("seen", "unseen")
    heads = [f"{measure}, {group}" for group in groups for measure in MEASURES]
    arms = ["base", *(arm.name for arm in experiment.arms)]
    rows = []
    for arm in arms:
        cells = [
            str(Spread(compared.by_seed(arm, measure, group)))
            for group in groups
            for measure in MEASURES
        ]
        rows.append(f"| {' | '.join([arm, _evaluations(arm, compared), *cells])} |")
    name = f"{path.stem}/{experiment.name}-{compared.prompts.name}"
    draw(compared, arms, path.parent / f"{name}.png")
    show(compared, arms, path.parent / f"{name}-images.png")
    return [
        f"### {compared.prompts.title}",
        "",
        f"![Reward against aesthetic score and diversity]({name}.png)",
        f"![Images of the same seeds]({name}-images.png)",
        "",
        f"| arm | denoiser evaluations | {' | '.join(heads)} |",
        "|---" * (len(heads) + 2) + "|",
        *rows,
        "",
        *(f"- {each['text']}" for each in compared.results["warnings"]),
        "",
        "<details><summary>Commands</summary>",
        "",
        "```console",
        *(f"$ {command}" for command in compared.commands),
        "```",
        "",
        "</details>",
    ]
