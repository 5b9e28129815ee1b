"""The paper's study: its commands are understood, and its claims can come out either way."""

import importlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "examples" / "paper"


@pytest.fixture(scope="module")
def paper():
    """The modules of the study, by name."""
    names = ("study", "experiments", "figures", "page", "run")
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def test_every_command_is_understood(paper, dpok, tmp_path):
    study = paper["run"].Study(tmp_path / "out", tmp_path / "rows", paper["study"].FULL)
    experiments = paper["experiments"].EXPERIMENTS
    arms = {row.arm.name: row for row in paper["run"].every(experiments)}
    assert arms.keys() == {arm.name for experiment in experiments for arm in experiment.arms}
    for row in arms.values():
        training = row.trainings((0,))[0]
        command = study.train(training)
        if "--init-adapter" in command:  # of a training that is not here
            command.pop(place := command.index("--init-adapter"))
            command.pop(place)
        result = dpok(*command, "--print-config")
        assert result.code == 0, (command, result.err)
        assert f'name = "{training.name}"' in result.out


def test_every_row_has_a_name_of_its_own(paper):
    every = {
        (row.arm.name, row.prompts.name): row.name
        for experiment in paper["experiments"].EXPERIMENTS
        for row in experiment.rows
    }
    assert len({*every.values()}) == len(every) == 31
    assert all(name.replace("-", "").isalnum() for name in every.values())  # so: folder.log


def test_a_row_is_evaluated_on_unseen_prompts_if_a_claim_is_about_them(paper):
    rows = paper["run"].every(paper["experiments"].EXPERIMENTS)
    assert {row.name for row in rows if paper["experiments"].has_unseen(row)} == {
        *(f"{arm}-{prompts}" for arm in ("rl", "sft") for prompts in paper["experiments"].SINGLE),
        *(f"{arm}-{many}" for arm in ("rl", "rl-value-function") for many in ("four", "fifty")),
    }


def test_claims_are_about_arms_of_their_experiment(paper):
    claims = [
        (experiment, claim)
        for experiment in paper["experiments"].EXPERIMENTS
        for claim in experiment.claims
    ]
    for experiment, claim in claims:
        assert {claim.above, claim.below} <= {"base", *(arm.name for arm in experiment.arms)}
        assert claim.above != claim.below
    said = [(experiment.name, claim.text) for experiment, claim in claims]
    assert len({*said}) == len(said)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        # A half-width of 4.303 times the standard deviation over the root of 3.
        ([1.0, 1.1, 0.9], "agrees"),
        ([-1.0, -1.1, -0.9], "disagrees"),
        ([1.0, -0.5, 0.9], "open"),
        ([0.0, 0.0, 0.0], "open"),
        ([1.0], "one seed"),
        ([1.0, float("nan"), 0.9], "not reached"),
    ],
)
def test_a_claim_agrees_or_not_by_its_interval(paper, values, verdict):
    assert paper["page"].Spread(values).verdict == verdict


def test_an_interval_by_hand(paper):
    spread = paper["page"].Spread([1.0, 2.0, 3.0])
    assert spread.margin == pytest.approx(4.303 / 3**0.5)
    assert str(spread) == "2.00 ± 2.48"


def test_the_work_to_a_reward(paper):
    """The mean of three rounds is 0 or more from the fifth on."""
    run = {
        "denoiser_evaluations": [10, 20, 30, 40, 50, 60],
        "reward/mean": [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0],
    }
    assert paper["page"].evaluations_to_reward(run) == 50
    run["reward/mean"][4] = 0.9
    assert paper["page"].evaluations_to_reward(run) == 60
    assert paper["page"].evaluations_to_reward({**run, "reward/mean": [-1.0] * 6}) == 60


def test_the_diversity_at_a_reward(paper):
    at = paper["page"].diversity_at_reward
    run = {
        "grid/reward": [None, -0.5, None, 0.5, 1.0],
        "grid/diversity_kept": [None, 0.9, None, 0.5, 0.2],
    }
    assert at(run, -1.0) == pytest.approx(0.7)
    assert at({key: grids[3:] for key, grids in run.items()}, -1.5) == pytest.approx(0.625)
    assert math.isnan(at({key: grids[:3] for key, grids in run.items()}, -1.0))


def test_a_difference_is_that_of_the_seeds_over_all_prompt_sets(paper):
    page, study = paper["page"], paper["study"]
    experiment = next(each for each in paper["experiments"].EXPERIMENTS if each.name == "many")
    claim = study.Claim("", "", "RL", "base", "judge", "unseen", "count")

    def record(base, *seeds):
        of_measure = {"base": base} | {str(seed): score for seed, score in enumerate(seeds)}
        scores = {"unseen": {"": {}, "count": {"judge": of_measure}}}
        return {"scores": scores, "runs": dict.fromkeys("01")}

    records = {"rl-four": record(0.1, 0.2, 0.4), "rl-fifty": record(0.2, 0.6, 0.8)}
    spread = page.difference(claim, experiment, records)
    assert spread.values == pytest.approx([0.25, 0.45])
    turned = study.Claim("", "", "base", "RL", "judge", "unseen", "count")
    assert page.difference(turned, experiment, records).values == pytest.approx([-0.25, -0.45])
    assert page.difference(claim, experiment, {**records, "rl-fifty": None}) is None


def test_a_page_says_how_many_claims_are_not_run(paper, tmp_path):
    experiments = paper["experiments"].EXPERIMENTS
    records = dict.fromkeys(row.name for row in paper["run"].every(experiments))
    paper["page"].write_page(tmp_path / "paper.md", experiments, records)
    claims = sum(len(experiment.claims) for experiment in experiments)
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert f"Not run yet, and run by `make paper`: {claims} more claims." in text
    assert "## " not in text
    assert json.loads((tmp_path / "paper.json").read_text(encoding="utf-8")) == []


@pytest.mark.slow
def test_a_quick_study(paper, tmp_path):
    """Three rounds make more rabbits green; the page says so, and is not made anew."""
    folder = tmp_path / "study"
    call = [sys.executable, FOLDER / "run.py", "--quick", "--output", folder, "--processes", "1"]
    made = subprocess.run(call, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{folder / 'paper.md'}\n"
    numbers = json.loads((folder / "paper.json").read_text(encoding="utf-8"))
    change = {each["claim"]: each["by_seed"][0] for each in numbers}
    assert len(numbers) == 6
    assert change["RL is above the base (image-reward, seen prompts)"] > 0.2
    assert change["RL is above the base (judge, seen prompts)"] > 0.2
    text = (folder / "paper.md").read_text(encoding="utf-8")
    picture = folder / "paper" / "rl-colour.png"
    with Image.open(picture) as image:
        assert image.size == (512, 128)
        assert len(image.convert("RGB").getcolors(2**20)) > 1000  # not blank
    assert "](paper/rl-colour.png)" in text
    shutil.rmtree(folder / "rl-colour-0")  # what another machine has not
    again = subprocess.run(call, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (0, "")
    assert (folder / "paper.md").read_text(encoding="utf-8") == text
