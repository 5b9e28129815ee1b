"""When a fall of a held-out score is a warning of reward hacking, and when it is not."""

import pytest

from dpok_cli.engine.evaluation.results import summarise
from dpok_cli.rewards.manager import build


def results_of(planted):
    evaluation, folder = planted
    return summarise(evaluation, build(evaluation.rewards), folder)


def hacked(rises, falls):
    def score(model, row, seed):
        tuned, noise = model == "tuned", (seed % 3) / 10
        return {
            "image-reward": 1 + tuned * (rises + noise),
            "judge": 1 - tuned * (falls + noise),
        }

    return score


def test_a_fall_of_a_held_out_score_under_a_rise_is_a_warning(plant):
    (warning,) = results_of(plant(hacked(0.5, 0.3)))["warnings"]
    assert warning["kind"] == "possible reward hacking"
    assert (warning["model"], warning["group"], warning["falling"]) == ("tuned", "seen", ["judge"])
    assert warning["text"].startswith("Possible reward hacking by tuned on seen prompts: judge")


@pytest.mark.parametrize(
    ("rises", "falls", "trained"),
    [
        (0.5, -0.5, ("image-reward:model=tiny",)),  # both rise
        (0.5, -0.1, ("image-reward:model=tiny",)),  # the fall is within the noise
        (-0.5, 0.5, ("image-reward:model=tiny",)),  # both fall: it failed, it did not hack
        (0.5, 0.3, ("image-reward:model=tiny", "judge")),  # nothing was held out
        (0.5, 0.3, ()),  # not known what it was trained on
    ],
)
def test_nothing_else_is_a_warning(rises, falls, trained, plant):
    assert results_of(plant(hacked(rises, falls), trained=trained))["warnings"] == []


def test_where_lower_is_better_a_rise_is_a_loss(plant):
    def score(model, row, seed):
        tuned = model == "tuned"
        return {"jpeg-compressibility": 5.0 + tuned, "judge": float(tuned)}

    results = results_of(
        plant(score, rewards=("jpeg-compressibility", "judge"), trained=("judge",))
    )
    (row,) = (
        row
        for row in results["rows"]
        if (row["scope"], row["model"], row["measure"])
        == ("group", "tuned", "jpeg-compressibility")
    )
    assert (row["difference"], row["win_rate"]) == (1.0, 0.0)
    (warning,) = results["warnings"]
    assert warning["falling"] == ["jpeg-compressibility"]


@pytest.mark.parametrize("asked", [False, True])
def test_a_score_without_weights_is_a_witness_if_it_was_asked_for(asked, plant):
    """It may be there for another model that was trained on it, and says nothing of quality."""

    def score(model, row, seed):
        tuned = model == "tuned"
        return {"judge": float(tuned), "jpeg-incompressibility": 2.0 - tuned}

    rewards = ("judge", "jpeg-incompressibility")
    results = results_of(plant(score, rewards=rewards, trained=("judge",), asked=asked))
    assert [each["witness"] for each in results["rewards"]] == [True, asked]
    assert bool(results["warnings"]) == asked
