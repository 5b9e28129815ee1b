"""Known scores to known means, changes, wins and warnings."""

import csv
import io
import json

import pytest
import torch

from dpok_cli.engine.evaluation.plan import Prompt
from dpok_cli.engine.evaluation.results import COLUMNS, summarise, to_csv
from dpok_cli.errors import DpokError
from dpok_cli.rewards.manager import build

PROMPTS = (
    Prompt("a red cat", "seen", "colour"),
    Prompt("two red cats", "unseen", "count", "a red cat"),
    Prompt("a red dog", "unseen", "colour", "a red cat"),
)


def results_of(planted, **more):
    evaluation, folder = planted
    return summarise(evaluation, build(evaluation.rewards), folder, **more)


def find(results, **keys):
    (row,) = (row for row in results["rows"] if keys.items() <= row.items())
    return row


def scores(model, row, seed):
    """The base scores 0, 1, ..., 7; the tuned model 2 more, on row 1 only every other time."""
    more = 0 if model == "base" else 2 * (seed % 2) if row == 1 else 2
    return {"image-reward": float(seed + more), "judge": float(seed < 4)}


def test_means_changes_and_wins_are_those_by_hand(plant):
    results = results_of(plant(scores, prompts=PROMPTS))
    base = find(results, scope="group", group="seen", model="base", measure="image-reward")
    tuned = find(results, scope="group", group="seen", model="tuned", measure="image-reward")
    assert (base["mean"], base["n"], base["difference"], base["win_rate"]) == (3.5, 8, None, None)
    assert (tuned["mean"], tuned["difference"], tuned["win_rate"]) == (5.5, 2.0, 1.0)
    # every pair differs by 2, so the paired interval is a point though the scores spread
    assert (tuned["difference_low"], tuned["difference_high"]) == (2.0, 2.0)
    assert tuned["low"] < 4.5 < 6.5 < tuned["high"]

    half = find(
        results, scope="prompt", prompt="two red cats", model="tuned", measure="image-reward"
    )
    assert (half["mean"], half["difference"], half["win_rate"]) == (4.5, 1.0, 0.75)
    assert 0.1 < half["difference_low"] < 1 < half["difference_high"] < 1.9
    whole = find(results, scope="group", group="unseen", model="tuned", measure="image-reward")
    assert (whole["n"], whole["mean"], whole["difference"], whole["win_rate"]) == (
        16,
        5.0,
        1.5,
        0.875,
    )
    judge = find(results, scope="group", group="seen", model="tuned", measure="judge")
    assert (judge["mean"], judge["difference"], judge["win_rate"]) == (0.5, 0.0, 0.5)
    assert (judge["difference_low"], judge["difference_high"]) == (0.0, 0.0)
    kl = find(results, scope="group", group="seen", model="tuned", measure="kl")
    assert (kl["mean"], kl["low"], kl["high"]) == (0.5, 0.5, 0.5)


def test_the_base_against_itself_is_a_tie(plant):
    def score(model, row, seed):
        return {"image-reward": 0.1 * seed**2, "judge": 1.0}

    results = results_of(plant(score))
    for measure in ("image-reward", "judge"):
        row = find(results, scope="group", model="tuned", measure=measure)
        for key in ("difference", "difference_low", "difference_high"):
            assert row[key] == 0.0
        assert (row["win_rate"], row["win_low"], row["win_high"]) == (0.5, 0.5, 0.5)
    assert results["warnings"] == []


def test_categories_stand_apart_within_a_group(plant):
    results = results_of(plant(scores, prompts=PROMPTS))
    found = [
        (row["group"], row["category"], row["mean"])
        for row in results["rows"]
        if row["scope"] == "category"
        and (row["model"], row["measure"]) == ("tuned", "image-reward")
    ]
    assert found == [("seen", "colour", 5.5), ("unseen", "colour", 5.5), ("unseen", "count", 4.5)]


def test_images_of_a_seed_are_drawn_together(plant):
    """Two prompts that move as one are worth no more than one of them."""

    def score(model, row, seed):
        return {"image-reward": float(seed**2), "judge": 0.0}

    results = results_of(plant(score, prompts=PROMPTS))
    one, two = (
        find(results, scope="group", group=group, model="base", measure="image-reward")
        for group in ("seen", "unseen")
    )
    assert (one["low"], one["high"]) == (two["low"], two["high"])


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
    row = find(results, scope="group", model="tuned", measure="jpeg-compressibility")
    assert (row["difference"], row["win_rate"]) == (1.0, 0.0)
    (warning,) = results["warnings"]
    assert warning["falling"] == ["jpeg-compressibility"]


@pytest.mark.parametrize("asked", [False, True])
def test_a_score_without_weights_is_a_witness_if_it_was_asked_for(asked, plant):
    """It may be there for another model that was trained on it, and tells nothing of quality."""

    def score(model, row, seed):
        tuned = model == "tuned"
        return {"judge": float(tuned), "jpeg-incompressibility": 2.0 - tuned}

    rewards = ("judge", "jpeg-incompressibility")
    results = results_of(plant(score, rewards=rewards, trained=("judge",), asked=asked))
    assert [each["witness"] for each in results["rewards"]] == [True, asked]
    assert bool(results["warnings"]) == asked


def test_rewards_say_who_was_trained_on_them(plant):
    results = results_of(plant(scores))
    assert [(each["name"], each["trained_by"]) for each in results["rewards"]] == [
        ("image-reward", ["tuned"]),
        ("judge", []),
    ]
    assert [each["name"] for each in results["models"]] == ["base", "tuned"]


def test_diversity_of_pixels(plant):
    def colour(model, row, seed):
        return (255, 255, 255) if model == "base" and seed % 2 else (0, 0, 0)

    results = results_of(plant(scores, colour=colour))
    # 16 of the 28 pairs of 8 are one black and one white, 1 apart; root of the mean square
    base = find(results, scope="group", model="base", measure="diversity")
    assert base["mean"] == pytest.approx((16 / 28) ** 0.5)
    assert find(results, scope="group", model="tuned", measure="diversity")["mean"] == 0
    assert results["diversity"] == "pixels"


def test_diversity_by_an_embedding(plant):
    def embed(images):  # black one way, red a right angle off
        red = images[:, 0].mean((1, 2)) > 0.5
        return torch.stack([red.float(), (~red).float()], 1)

    def colour(model, row, seed):
        return (255 * (seed < 4), 0, 0)

    results = results_of(plant(scores, colour=colour), embedding=("clip:model=tiny", embed))
    base = find(results, scope="group", model="base", measure="diversity")
    assert base["mean"] == pytest.approx(16 / 28)  # cosine distance 1 for 16 of 28 pairs
    assert results["diversity"] == "clip:model=tiny"


def test_results_are_json_and_csv(plant):
    planted = plant(scores, prompts=PROMPTS)
    results = results_of(planted, remarks=["Left out."])
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results == results_of(planted, remarks=["Left out."])
    assert results["remarks"] == ["Left out."]
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert list(rows[0]) == list(COLUMNS)
    for line, row in zip(rows, results["rows"], strict=True):
        assert line["measure"] == row["measure"]
        assert float(line["mean"]) == row["mean"]
        assert (line["win_rate"] == "") == (row["win_rate"] is None)


def test_an_evaluation_that_is_not_complete_has_no_results(plant):
    evaluation, folder = plant(scores)
    lines = folder.scores.read_text().splitlines()
    folder.scores.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DpokError, match="holds 15 of 16 images"):
        results_of((evaluation, folder))
