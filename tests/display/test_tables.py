"""What a person sees of an evaluation."""

import io

from rich.console import Console

from dpok_cli.display import console, tables


def lines_of(renderable, width):
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def text_of(renderable):
    return [line.split() for line in lines_of(renderable, width=100)]


def row(**keys):
    names = "difference difference_low difference_high win_rate win_low win_high low high category"
    return dict.fromkeys(names.split()) | {"scope": "group", "prompt": ""} | keys


def test_the_table_of_an_evaluation():
    tuned = {"difference": 0.5, "difference_low": 0.25, "difference_high": 0.75, "win_rate": 0.875}
    ends = {"low": -0.01, "high": 0.04}
    results = {
        "rewards": [{"name": "judge", "trained_by": ["mine"]}],
        "rows": [
            row(group="seen", model="base", measure="judge", mean=0.25, low=0.1, high=0.4),
            row(group="seen", model="mine", measure="judge", mean=0.75, low=0.6, high=0.9, **tuned),
            row(group="seen", model="mine", measure="kl", mean=0.00002),
            row(group="unseen", model="base", measure="judge", mean=0.02, **ends),
            row(group="unseen", scope="prompt", model="base", measure="judge", prompt="a", mean=9),
            row(group="unseen", scope="prompt", model="base", measure="judge", prompt="b", mean=9),
            row(group="seen", scope="prompt", model="base", measure="judge", prompt="c", mean=9),
        ],
    }
    assert text_of(tables.evaluation_table(results)) == [
        ["seen", "(1", "prompt)", "model", "mean", "[95", "%]", "change", "[95", "%]", "wins"],
        ["judge", "base", "0.250", "[0.10,", "0.40]"],
        ["mine*", "0.750", "[0.60,", "0.90]", "+0.500", "[+0.25,", "+0.75]", "88%"],
        ["kl", "mine", "2.0e-05"],
        [],
        ["unseen", "(2", "prompts)", "model", "mean", "[95", "%]", "change", "[95", "%]", "wins"],
        ["judge", "base", "0.020", "[-0.010,", "0.040]"],
        [],
    ]


def test_a_row_is_whole_where_no_terminal_folds_it(monkeypatch):
    """As in a pipe: grep and sort see the prompts, the score and the model on each line."""
    both = dict(measure="judge", mean=0.25)
    rows = [
        row(group="seen", model="base", **both),
        row(group="seen", model="mine", win_rate=0.5, **both),
        row(group="seen", category="odd", scope="category", model="mine", **both),
        row(group="seen", category="even", scope="category", model="mine", **both),
        row(group="seen", scope="prompt", model="mine", prompt="a", **both),
    ]
    results = {"rewards": [{"name": "judge", "trained_by": ["mine"]}], "rows": rows}
    stream = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=stream, width=40))
    console.show(tables.evaluation_table(results))
    assert stream.getvalue().splitlines() == [
        "prompts     score  model  mean [95 %]  change [95 %]  wins",
        "seen        judge  base         0.250",
        "seen        judge  mine*        0.250                  50%",
        "seen, odd   judge  mine*        0.250",
        "seen, even  judge  mine*        0.250",
    ]


def test_an_evaluation_fits_a_terminal():
    ends = {"low": -0.01, "high": 0.04, "difference": 0.5, "win_rate": 0.5}
    ends |= {"difference_low": -0.25, "difference_high": 0.75}
    name = "20260102-030405-train-rl"
    rows = [row(group="seen", model=name, measure="image-reward", mean=0.25, **ends)]
    results = {"rewards": [], "rows": rows}
    wide, narrow = (lines_of(tables.evaluation_table(results), width) for width in (200, 80))
    assert wide[1] == (
        "image-reward     20260102-030405-train-rl  0.250 [-0.01, 0.04]"
        "  +0.500 [-0.25, +0.75]   50%"
    )
    assert narrow[1:3] == [
        "image-reward",
        "  20260102-030405-train-rl  0.250 [-0.01, 0.04]  +0.500 [-0.25, +0.75]   50%",
    ]


def test_sentences_have_lines_of_their_own_on_a_narrow_terminal():
    rows = [("judge", "here", "Says whether it is so."), ("猫", "not here", "Says [more].")]
    listing = tables.Listing(("reward", "weights", "description"), rows)
    assert lines_of(listing, 60) == [
        "reward  weights   description",
        "judge   here      Says whether it is so.",
        "猫      not here  Says [more].",
    ]
    assert lines_of(listing, 20) == [
        "reward  weights",
        "judge   here",
        "  Says whether it is",
        "  so.",
        "猫      not here",
        "  Says [more].",
    ]


def test_the_pixel_distance_is_shown_if_there_is_no_diversity():
    def shown(*measures):
        rows = [row(group="seen", model="base", measure=each, mean=0.5) for each in measures]
        lines = text_of(tables.evaluation_table({"rewards": [], "rows": rows}))
        return [line[0] for line in lines[1:] if line]

    assert shown("pixel_distance", "kl") == ["pixel_distance", "kl"]
    assert shown("pixel_distance", "diversity", "kl") == ["diversity", "kl"]
    measured = {"pixel_distance": 0.25, "diversity": 0.5}
    lines = text_of(tables.before_after_table(measured, measured))
    assert lines[1:] == [["diversity", "0.500", "0.500", "+0.000"]]


def test_the_table_of_before_and_after():
    table = tables.before_after_table(
        {"judge": 0.25, "kilobytes": 12.0}, {"judge": 0.875, "kilobytes": 9.5}
    )
    assert text_of(table) == [
        ["before", "after", "change"],
        ["judge", "0.250", "0.875", "+0.625"],
        ["kilobytes", "12.000", "9.500", "-2.500"],
    ]


def test_categories_have_a_table_where_there_are_several():
    def results(*categories):
        rows = [row(group="seen", model="base", measure="judge", mean=0.5)]
        for number, each in enumerate(categories):
            head = {"group": "seen", "category": each, "model": "base", "measure": "judge"}
            rows.append(row(**head, scope="category", mean=number))
            rows.append(row(**head, scope="prompt", prompt=each, mean=9))
        return {"rewards": [], "rows": rows}

    heads = [line[0] for line in text_of(tables.evaluation_table(results("one"))) if line]
    assert heads == ["seen", "judge"]
    lines = [line for line in text_of(tables.evaluation_table(results("one", "two"))) if line]
    assert [line[:2] for line in lines[2:]] == [
        ["seen,", "one"],
        ["judge", "base"],
        ["seen,", "two"],
        ["judge", "base"],
    ]
    assert [line[2] for line in lines[3::2]] == ["0.000", "1.000"]


def test_the_table_of_votes():
    votes = {
        "rows": [
            {"model": "mine", "question": "quality", "group": "all", "win_rate": 0.75}
            | {"win_low": 0.5, "win_high": 1.0, "sets": 6, "votes": 12}
            | {"agreement": 0.5, "kappa": -0.333},
            {"model": "mine", "question": "quality", "group": "seen", "win_rate": None}
            | {"win_low": None, "win_high": None, "sets": 0, "votes": 0}
            | {"agreement": None, "kappa": None},
        ]
    }
    assert text_of(tables.votes_table(votes))[1:] == [
        ["mine", "quality", "all", "0.750", "[0.50,", "1.00]", "6", "12", "50%", "-0.33"],
        ["mine", "quality", "seen", "0", "0"],
    ]
