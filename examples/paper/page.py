"""The page of the study: each of the paper's claims, what came out here, and whether it agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from figures import draw
from study import Claim, Experiment, PromptSet, Row

from dpok_cli.strict_json import dumps

#: Student's t for an interval of 95 %, by the number of seeds.
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
GROUPS = ("seen", "unseen")
MEASURES = ("image-reward", "aesthetic", "judge", "diversity")
#: Of ImageReward: evaluations are counted, and diversity is compared, where a run reaches it.
REACHED = 0.0
BASE = "base"

Record = Mapping[str, Any]
#: By the name of a row; None for one that is not done.
Records = Mapping[str, Record | None]


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
        if not isfinite(self.mean):
            return "-"
        return f"{self.mean:.2f}" + ("" if self.margin is None else f" ± {self.margin:.2f}")

    @property
    def verdict(self) -> str:
        """Whether a difference agrees with the claim that it is above 0."""
        if not isfinite(self.mean):
            return "not reached"
        if self.margin is None:
            return "one seed"
        if abs(self.mean) <= self.margin:
            return "open"
        return "agrees" if self.mean > 0 else "disagrees"


# ------------------------------------------------------------------------------------- the measures


def score(
    record: Record, seed: str, measure: str, group: str = "seen", category: str = ""
) -> float:
    """Return a measure of the run with a seed, or of the base."""
    if measure == "evaluations to the reward":
        return evaluations_to_reward(record["runs"][seed]) / 1000
    if measure == "diversity at equal reward":
        before = score(record, BASE, "image-reward", "seen")
        return diversity_at_reward(record["runs"][seed], before)
    return record["scores"][group][category][measure][seed]


def evaluations_to_reward(run: Mapping[str, Sequence[float]]) -> float:
    """Return the evaluations until the mean reward of three rounds is `REACHED`.

    Those of the whole run, if it never is.
    """
    rewards, evaluations = run["reward/mean"], run["denoiser_evaluations"]
    for last in range(2, len(rewards)):
        if mean(rewards[last - 2 : last + 1]) >= REACHED:
            return evaluations[last]
    return evaluations[-1]


def diversity_at_reward(run: Mapping[str, Sequence[float]], before: float) -> float:
    """Return the part of its diversity that the sample grid keeps where its reward is `REACHED`.

    It is between the grids before and after; NaN if no grid reaches it. ``before`` is the reward
    before training.
    """
    grids = zip(run.get("grid/reward", ()), run.get("grid/diversity_kept", ()), strict=True)
    points = [(before, 1.0), *(each for each in grids if None not in each)]
    for (low, more), (high, less) in pairwise(points):
        if high >= REACHED:
            return more + (REACHED - low) / (high - low) * (less - more)
    return nan


def difference(claim: Claim, experiment: Experiment, records: Records) -> Spread | None:
    """Return how far one arm is above the other, for each seed the mean over the prompt sets.

    None if a row is not done.
    """
    apart = []
    for prompts in experiment.sets:
        rows = {arm.name: Row(arm, prompts).name for arm in experiment.arms}
        of_base = next(rows[name] for name in (claim.above, claim.below) if name != BASE)
        above, below = (rows.get(name, of_base) for name in (claim.above, claim.below))
        one, other = records[above], records[below]
        if not (one and other):
            return None
        seeds = one["runs"] if claim.above != BASE else other["runs"]
        apart.append(
            [
                value(one, claim, claim.above, seed) - value(other, claim, claim.below, seed)
                for seed in seeds
            ]
        )
    return Spread([mean(of_seed) for of_seed in zip(*apart, strict=True)])


def value(record: Record, claim: Claim, arm: str, seed: str) -> float:
    """Return the claim's measure of one arm."""
    return score(record, BASE if arm == BASE else seed, claim.measure, claim.group, claim.category)


# ----------------------------------------------------------------------------------------- the page


def write_page(path: Path, experiments: Sequence[Experiment], records: Records) -> None:
    """Write the page, its plots, and the claims' numbers as JSON beside it."""
    found = [
        (experiment, claim, difference(claim, experiment, records))
        for experiment in experiments
        for claim in experiment.claims
    ]
    lines = [
        "# The paper's study on the tiny world",
        "",
        "Written by `make paper` (`examples/paper/run.py`). A row is a claim of Fan et al. 2023"
        " ([arXiv 2305.16381](https://arxiv.org/abs/2305.16381)) or of this project, with the"
        " difference of the two arms that it is about: the mean over three training seeds, with"
        " its interval of 95 %. A claim agrees if the interval is above 0, disagrees if it is"
        " below, and is open otherwise. To repeat a row by hand, run `make paper` first, which"
        " writes the prompt files (it does not repeat what is here), then the row's commands.",
        "",
        "| claim | source | difference | |",
        "|---|---|---|---|",
        *(
            f"| [{claim.text}](#{one.name}) | {claim.source} | {spread} | {spread.verdict} |"
            for one, claim, spread in found
            if spread
        ),
    ]
    if missing := sum(spread is None for *_, spread in found):
        lines += ["", f"Not run yet, and run by `make paper`: {missing} more claims."]
    # Where the pictures and commands of a row are.
    first = {row.name: each.name for each in reversed(experiments) for row in each.rows}
    for experiment in experiments:
        sections = [
            _section(path, experiment, prompts, records, first) for prompts in experiment.sets
        ]
        if any(sections):
            lines += ["", f'<a id="{experiment.name}"></a>', "", f"## {experiment.title}"]
            lines += ["", experiment.text]
            if experiment.found and all(records[row.name] for row in experiment.rows):
                lines += ["", experiment.found]
        lines += [line for section in sections for line in section]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    numbers = [
        {"experiment": one.name, "claim": claim.text, "by_seed": list(spread.values)}
        | {"verdict": spread.verdict}
        for one, claim, spread in found
        if spread
    ]
    path.with_suffix(".json").write_text(dumps(numbers, indent=1), encoding="utf-8")


def _section(
    path: Path,
    experiment: Experiment,
    prompts: PromptSet,
    records: Records,
    first: Mapping[str, str],
) -> list[str]:
    """Return a table of all arms on one prompt set, with the pictures and commands of new rows.

    ``first`` says for each row which experiment is the first to have it.
    """
    rows = {arm.name: Row(arm, prompts).name for arm in experiment.arms}
    done = {arm: record for arm, row in rows.items() if (record := records[row])}
    if not done:
        return []
    scores = [record["scores"] for record in done.values()]
    groups = [group for group in GROUPS if all(group in each for each in scores)]
    heads = [f"{measure}, {group}" for group in groups for measure in MEASURES]
    place = f"{path.stem}/{experiment.name}-{prompts.name}.png"
    draw(done, path.parent / place)
    new = [arm for arm in done if first[rows[arm]] == experiment.name]
    known = [f"{arm} [above](#{first[rows[arm]]})" for arm in done if arm not in new]
    return [
        "",
        f"### {prompts.title}",
        "",
        f"![Reward in training, and at the end against aesthetic and diversity]({place})",
        "",
        f"| arm | denoiser evaluations | {' | '.join(heads)} |",
        "|---" * (len(heads) + 2) + "|",
        _table_row(BASE, next(iter(done.values())), [BASE], groups),
        *(_table_row(arm, record, list(record["runs"]), groups) for arm, record in done.items()),
        *(_by_category(prompts, done) if prompts.size > 1 else []),
        *([""] if any(record["warnings"] for record in done.values()) else []),
        *(f"- {arm}: {text}" for arm, record in done.items() for text in record["warnings"]),
        *(["", f"Images and commands: {', '.join(known)}."] if known else []),
        *(_details(path, {arm: rows[arm] for arm in new}, done) if new else []),
    ]


def _details(path: Path, rows: Mapping[str, str], done: Mapping[str, Record]) -> list[str]:
    """Return the pictures and the commands of some rows, folded."""
    return [
        "",
        "<details><summary>Images of the same seeds, the base's above</summary>",
        "",
        *(f"{arm}:<br>![{arm}]({path.stem}/{row}.png)<br>" for arm, row in rows.items()),
        "",
        "</details>",
        "<details><summary>Commands</summary>",
        "",
        "```console",
        "$ export OMP_NUM_THREADS=1  # as the study does: more threads round differently",
        *(f"$ {command}" for arm in rows for command in done[arm]["commands"]),
        "```",
        "",
        "</details>",
    ]


def _table_row(arm: str, record: Record, seeds: Sequence[str], groups: Sequence[str]) -> str:
    """Return a table's row of the base, or of an arm with its seeds."""
    cells = [
        str(Spread([score(record, seed, measure, group) for seed in seeds]))
        for group in groups
        for measure in MEASURES
    ]
    taken = [record["runs"][seed]["denoiser_evaluations"][-1] for seed in seeds if seed != BASE]
    work = f"{mean(taken):,.0f}".replace(",", " ") if taken else "0"
    return f"| {' | '.join([arm, work, *cells])} |"


def _by_category(prompts: PromptSet, done: Mapping[str, Record]) -> list[str]:
    """Return a table of ImageReward and the judge by category."""
    groups = [(group, measure) for group in GROUPS for measure in MEASURES[:3:2]]
    lines = [
        "",
        f"| category | arm | {' | '.join(f'{measure}, {group}' for group, measure in groups)} |",
        "|---" * (len(groups) + 2) + "|",
    ]
    for category in prompts.seen:
        for arm, record in {BASE: next(iter(done.values())), **done}.items():
            seeds = [BASE] if arm == BASE else list(record["runs"])
            cells = [
                str(Spread([score(record, seed, measure, group, category) for seed in seeds]))
                for group, measure in groups
            ]
            lines.append(f"| {' | '.join([category, arm, *cells])} |")
    return lines
