"""The paper's study: its commands are understood, and its claims can come out either way."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "paper"


@pytest.fixture(scope="module")
def paper():
    """The modules of the study, by name."""
    names = ("study", "figures", "page", "run")
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def test_every_command_is_understood(paper, dpok, tmp_path):
    study = paper["run"].Study(Path("out"), paper["study"].FULL, 1)
    arms = {
        training.arm.name: training
        for experiment in paper["study"].EXPERIMENTS
        for training in paper["study"].trainings(experiment, study.scale)
    }
    assert arms.keys() == paper["study"].ARMS.keys()
    for training in arms.values():
        command = study.command(training)
        if "--init-adapter" in command:  # of a training that is not here
            command.pop(place := command.index("--init-adapter"))
            command.pop(place)
        result = dpok(*command, "--print-config")
        assert result.code == 0, (command, result.err)
        assert f'name = "{training.name}"' in result.out


def test_every_training_has_a_name_of_its_own(paper):
    every = [
        (training.arm.name, training.prompts.name, training.seed, training.name)
        for experiment in paper["study"].EXPERIMENTS
        for training in paper["study"].trainings(experiment, paper["study"].FULL)
    ]
    assert len({each[:3] for each in every}) == len({each[3] for each in every})


def test_claims_are_about_arms_of_their_experiment(paper):
    for experiment in paper["study"].EXPERIMENTS:
        arms = {"base", *(arm.name for arm in experiment.arms)}
        for claim in experiment.claims:
            assert {claim.above, claim.below} <= arms
            assert claim.above != claim.below


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        # A half-width of 4.303 times the standard deviation over the root of 3.
        ([1.0, 1.1, 0.9], "agrees"),
        ([-1.0, -1.1, -0.9], "disagrees"),
        ([1.0, -0.5, 0.9], "open"),
        ([0.0, 0.0, 0.0], "open"),
        ([1.0], "one seed"),
    ],
)
def test_a_claim_agrees_or_not_by_its_interval(paper, values, verdict):
    assert paper["page"].verdict(paper["page"].Spread(values)) == verdict


def test_an_interval_by_hand(paper):
    spread = paper["page"].Spread([1.0, 2.0, 3.0])
    assert spread.margin == pytest.approx(4.303 / 3**0.5)
    assert str(spread) == "2.00 ± 2.48"
