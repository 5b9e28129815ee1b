"""Known scores to known means, changes, wins and distances."""

import csv
import io
import json
from dataclasses import replace

import pytest
import torch

from dpok_cli.engine.evaluation.plan import Prompt
from dpok_cli.engine.evaluation.results import COLUMNS, summarise, to_csv
from dpok_cli.errors import DpokError
from dpok_cli.rewards.embedding import ImageEmbedding
from dpok_cli.rewards.manager import build

PROMPTS = (
    Prompt("a red cat", "seen", "colour"),
    Prompt("two red cats", "unseen", "count", "a red cat"),
    Prompt("a red dog", "unseen", "colour", "a red cat"),
)


def results_of(planted, embedding=None):
    evaluation, folder = planted
    return summarise(evaluation, build(evaluation.rewards), folder, embedding)


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


def test_rewards_say_who_was_trained_on_them(plant):
    results = results_of(plant(scores))
    assert [(each["name"], each["trained_by"]) for each in results["rewards"]] == [
        ("image-reward", ["tuned"]),
        ("judge", []),
    ]
    assert [each["name"] for each in results["models"]] == ["base", "tuned"]


def test_pixel_distance_of_the_images_on_disk(plant):
    def colour(model, row, seed):
        return (255, 255, 255) if model == "base" and seed % 2 else (0, 0, 0)

    results = results_of(plant(scores, colour=colour))
    # 16 of the 28 pairs of 8 are one black and one white
    base = find(results, scope="group", model="base", measure="pixel_distance")
    assert (base["mean"], base["n"]) == (pytest.approx(16 / 28), 8)
    assert find(results, scope="group", model="tuned", measure="pixel_distance")["mean"] == 0
    assert results["diversity"] is None
    assert not any(row["measure"] == "diversity" for row in results["rows"])


def test_diversity_by_an_embedding(plant):
    def embed(images):  # black one way, red a right angle off
        red = images[:, 0].mean((1, 2)) > 0.5
        return torch.stack([red.float(), (~red).float()], 1)

    def colour(model, row, seed):
        return (255 * (seed < 4), 0, 0)

    embedding = ImageEmbedding("clip:model=tiny", embed)
    results = results_of(plant(scores, colour=colour), embedding)
    base = find(results, scope="group", model="base", measure="diversity")
    assert base["mean"] == pytest.approx(16 / 28)  # cosine distance 1 for 16 of 28 pairs
    assert results["diversity"] == "clip:model=tiny"
    pixels = find(results, scope="group", model="base", measure="pixel_distance")
    assert pixels["mean"] == pytest.approx(16 / 28 / 3**0.5)  # one channel of three


def test_results_are_json_and_csv(plant):
    evaluation, folder = plant(scores, prompts=PROMPTS)
    planted = replace(evaluation, remarks=("Left out.",)), folder
    results = results_of(planted)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results == results_of(planted)
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


def test_single_images_have_no_distance(plant):
    embedding = ImageEmbedding("clip", lambda images: pytest.fail("has no use"))
    results = results_of(plant(scores, prompts=PROMPTS, samples=1), embedding)
    assert {row["measure"] for row in results["rows"]} == {"image-reward", "judge", "kl"}
    assert results["diversity"] is None


def test_the_distances_hold_no_more_than_a_batch(plant, monkeypatch):
    evaluation, folder = plant(scores, prompts=PROMPTS)
    whole = results_of((evaluation, folder))
    small = replace(evaluation, config=replace(evaluation.config, sample_batch_size=3))
    sizes, read = [], type(folder).read
    monkeypatch.setattr(type(folder), "read", lambda *to: sizes.append(len(to[2])) or read(*to))
    assert results_of((small, folder))["rows"] == whole["rows"]
    assert set(sizes) == {3, 2}  # of eight seeds
