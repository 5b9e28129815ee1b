"""Texts with square brackets and colons, which a terminal library reads as markup and emoji.

From a plugin whose docstring named a tag, and folders called after their settings.
"""

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from dpok_cli import RewardModel
from dpok_cli.display import console, tables

#: A tag that is closed but was not opened ends the program; the others are dropped or replaced.
TEXT = "[/b] [red]x[/red] [1, 2] :cat: \\[z"


class Tagged(RewardModel):
    __doc__ = f"Finds {TEXT}."
    name = "tagged"

    @dataclass(frozen=True)
    class Options:
        tag: str = TEXT

    def load(self):
        raise ValueError(TEXT)

    def score_batch(self, images, prompts): ...


def test_rewards_show_a_plugins_texts_as_they_are(dpok, install):
    install(Tagged, version="[bold]1")
    code, out, err = dpok("rewards")
    assert (code, err) == (0, "")
    (line,) = (line for line in out.splitlines() if line.startswith("tagged"))
    assert "dpok-test [bold]1" in line
    assert f"Finds {TEXT}." in line
    code, out, err = dpok("rewards", "show", "tagged")
    assert (code, err) == (0, "")
    assert f"Finds {TEXT}." in out
    assert f"Option tag (str, default {TEXT!r})" in out
    code, out, err = dpok("rewards", "check", "tagged", "--device=cpu")
    assert (code, out) == (1, "")
    assert err == f"Error: tagged: could not be loaded: ValueError: {TEXT}\n"


def shown(table, monkeypatch, stream=None):
    stream = stream or io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=stream, width=300))
    console.show(table)
    return stream.getvalue().splitlines()


def test_tables_show_names_as_they_are(monkeypatch):
    _, line, *_ = shown(tables.before_after_table({TEXT: 1.0}, {TEXT: 2.0}), monkeypatch)
    assert line.startswith(f"{TEXT}  ")
    keys = "difference difference_low difference_high win_rate win_low win_high low high"
    row = dict.fromkeys(keys.split()) | {"scope": "group", "category": "", "prompt": ""}
    row |= {"group": TEXT, "measure": TEXT, "model": TEXT, "mean": 1.0}
    results = {"rewards": [{"name": TEXT, "trained_by": [TEXT]}], "rows": [row]}
    _, line, *_ = shown(tables.evaluation_table(results), monkeypatch)
    assert line.startswith(f"{TEXT}  {TEXT}  {TEXT}*")
    votes = dict.fromkeys(("win_rate", "win_low", "win_high", "agreement", "kappa"))
    votes |= {"model": TEXT, "question": "quality", "group": TEXT, "sets": 0, "votes": 0}
    _, line = shown(tables.votes_table({"rows": [votes]}), monkeypatch)
    assert line.count(TEXT) == 2


@pytest.mark.parametrize("text", ["two\nlines", "carriage\rreturn", "line\u2028separator"])
def test_a_row_is_a_line_whatever_is_in_it(text, monkeypatch):
    lines = shown(tables.before_after_table({text: 1.0}, {text: 2.0}), monkeypatch)
    assert len(lines) == 2
    assert lines[1].startswith(" ".join(text.splitlines()))
