"""The pages of docs/ say what the code says."""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_tables_of_metrics_are_those_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    sys.modules.pop("metrics_tables", None)
    import metrics_tables

    page = (DOCS / "algorithms.md").read_text(encoding="utf-8")
    assert metrics_tables.with_tables(page) == page, "run: make docs"
    assert re.search(r"^\| `ratio/first_max_dev` \|", page, re.M)
    assert metrics_tables.with_tables(page.replace("1e-6 or less", "any")) == page


def test_links_between_the_pages_lead_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
