"""The votes of raters: read, refused and counted."""

import json

import numpy as np
import pytest

from dpok_cli.engine.evaluation.plan import Prompt
from dpok_cli.engine.evaluation.report.human import write_human_page
from dpok_cli.engine.evaluation.report.votes import read_votes, tally
from dpok_cli.errors import InputError

PROMPTS = (Prompt("a red cat", "seen"), Prompt("a red dog", "unseen", "colour", "a red cat"))


def scores(model, row, seed):
    return {"image-reward": 0.0, "judge": 0.0}


@pytest.fixture
def page(plant):
    """An evaluation folder with a page of 2 prompts x 3 sets, and its key."""
    evaluation, folder = plant(scores, prompts=PROMPTS, samples=13, tuned=("zebra",))
    write_human_page(evaluation, folder)
    return folder, json.loads(folder.key.read_text())


def side_of(item, model):
    return "left" if item["left"] == model else "right"


def save(folder, key, rater, vote):
    """Save answers as the page does; ``vote(number, item, question)`` chooses, None is none."""
    answers = {}
    for number, (name, item) in enumerate(key["sets"].items()):
        given = {
            question: choice
            for question in ("alignment", "quality")
            if (choice := vote(number, item, question))
        }
        if given:
            answers[name] = given
    file = folder.path / f"votes-{rater}.json"
    file.write_text(json.dumps({"study": key["study"], "rater": rater, "answers": answers}))
    return file


def row_of(result, **keys):
    (row,) = (row for row in result["rows"] if keys.items() <= row.items())
    return row


def test_votes_come_back_as_win_rates(page):
    folder, key = page

    def for_the_model_but_half_ties(number, item, question):
        if question == "quality":
            return side_of(item, "base")
        return side_of(item, "zebra") if number % 2 else "tie"

    file = save(folder, key, "one", for_the_model_but_half_ties)
    result = tally(*read_votes([file], []))
    assert result["raters"] == 1
    row = row_of(result, model="zebra", question="alignment", group="all")
    assert (row["sets"], row["votes"], row["win_rate"]) == (6, 6, 0.75)
    assert 0.5 <= row["win_low"] < 0.75 < row["win_high"] <= 1
    assert (row["agreement"], row["kappa"]) == (None, None)
    row = row_of(result, model="zebra", question="quality", group="all")
    assert (row["win_rate"], row["win_low"], row["win_high"]) == (0, 0, 0)
    seen = row_of(result, question="alignment", group="seen")
    unseen = row_of(result, question="alignment", group="unseen")
    assert (seen["win_rate"] + unseen["win_rate"]) / 2 == 0.75


def test_raters_who_disagree(page):
    folder, key = page
    files = [
        save(folder, key, "one", lambda n, item, q: side_of(item, "zebra")),
        save(folder, key, "two", lambda n, item, q: side_of(item, "zebra" if n < 3 else "base")),
    ]
    row = row_of(tally(*read_votes(files, [])), question="quality", group="all")
    assert (row["sets"], row["votes"], row["win_rate"]) == (6, 12, 0.75)
    assert row["agreement"] == 0.5
    # chance: 9 of 12 for the model, 3 for the base
    chance = 0.75**2 + 0.25**2
    assert row["kappa"] == pytest.approx((0.5 - chance) / (1 - chance))


def test_a_rater_who_saved_twice_counts_once_with_the_fuller_file(page):
    folder, key = page
    half = save(folder, key, "one", lambda n, item, q: "tie" if n < 2 else None)
    early = half.rename(folder.path / "early.json")
    late = save(folder, key, "one", lambda n, item, q: side_of(item, "zebra"))
    for files in ([early, late], [late, early]):
        result = tally(*read_votes(files, []))
        assert result["raters"] == 1
        assert row_of(result, question="quality", group="all")["win_rate"] == 1


def test_sets_without_an_answer_do_not_count(page):
    folder, key = page
    file = save(folder, key, "one", lambda n, item, q: "tie" if (n, q) == (0, "quality") else None)
    result = tally(*read_votes([file], []))
    row = row_of(result, question="quality", group="all")
    assert (row["sets"], row["votes"], row["win_rate"]) == (1, 1, 0.5)
    row = row_of(result, question="alignment", group="all")
    assert (row["votes"], row["win_rate"]) == (0, None)


def test_the_key_is_found_below_the_runs(page, tmp_path):
    folder, key = page
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    file = save(folder, key, "one", lambda n, item, q: "tie").rename(downloads / "v.json")
    found, _ = read_votes([file], [tmp_path])
    assert found == key["sets"]
    with pytest.raises(InputError, match="human-key.json of the page .* is not found"):
        read_votes([file], [downloads])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"0" * 16: {"quality": "left"}}}, "no set of images"),
        ({"answers": {"": {}}}, "no set of images"),
        ({"study": "other"}, "human-key.json of the page other is not found"),
        ({"rater": 3}, "holds no answers"),
        ({"answers": None}, "holds no answers"),
    ],
)
def test_files_that_are_no_votes(change, message, page):
    folder, key = page
    file = save(folder, key, "one", lambda n, item, q: "tie")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_votes([file], [])


@pytest.mark.parametrize(("question", "choice"), [("quality", "up"), ("looks", "left")])
def test_answers_that_are_none(question, choice, page):
    folder, key = page
    file = save(folder, key, "one", lambda n, item, q: "tie")
    votes = json.loads(file.read_text())
    votes["answers"][next(iter(votes["answers"]))] = {question: choice}
    file.write_text(json.dumps(votes))
    with pytest.raises(InputError, match=f"{question} = '{choice}' is no answer"):
        read_votes([file], [])


def test_unreadable_files(page, tmp_path):
    with pytest.raises(InputError, match="Cannot read .*none.json"):
        read_votes([tmp_path / "none.json"], [])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="bad.json is not JSON"):
        read_votes([tmp_path / "bad.json"], [])


def test_votes_by_chance_have_an_interval_around_one_half(plant):
    evaluation, folder = plant(scores, samples=20, prompts=PROMPTS)
    write_human_page(evaluation, folder)
    key = json.loads(folder.key.read_text())
    random = np.random.default_rng(0)
    files = [
        save(folder, key, f"r{n}", lambda *_: random.choice(["left", "right"])) for n in range(4)
    ]
    row = row_of(tally(*read_votes(files, [])), question="quality", group="all")
    assert row["win_low"] < 0.5 < row["win_high"]
    assert abs(row["kappa"]) < 0.4
