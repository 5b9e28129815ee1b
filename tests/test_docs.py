"""The pages of docs/ say what the code says."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from dpok_cli.engine.runs.measures import Measure

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    sys.modules.pop("metrics_tables", None)
    return importlib.import_module("metrics_tables")


def test_the_tables_of_metrics_are_those_of_the_code(tables):
    page = (DOCS / "algorithms.md").read_text(encoding="utf-8")
    assert tables.with_tables(page) == page, "run: make docs"
    assert re.search(r"^\| `ratio/first_max_dev` \| `dpok`, `mixed` \|", page, re.M)
    assert tables.with_tables(page.replace("1e-6 or less", "any")) == page


def test_a_table_of_several_has_each_row_once(tables):
    first, common = Measure("round", "Rounds."), Measure("heat", "How hot.", "Below 9.")
    measures = {
        "a": [first, Measure("loss", "It."), common],
        "b": [first, Measure("frost", "How cold."), Measure("loss", "That."), common],
    }
    assert tables.markdown(measures, "of").splitlines() == [
        "| metric | of | meaning | healthy |",
        "|---|---|---|---|",
        "| `round` |  | Rounds. |  |",
        "| `frost` | `b` | How cold. |  |",
        "| `loss` | `a` | It. |  |",
        "| `loss` | `b` | That. |  |",
        "| `heat` |  | How hot. | Below 9. |",
    ]
    assert tables.markdown({"": [common]}) == (
        "| metric | meaning | healthy |\n|---|---|---|\n| `heat` | How hot. | Below 9. |\n"
    )


def test_links_between_the_pages_lead_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
