"""Write the tables of metrics in algorithms.md from what the code says of each measure.

python docs/metrics_tables.py          # or: make docs
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpok_cli.engine.rl.measures import rl_measures
from dpok_cli.engine.rl.objectives import OBJECTIVES
from dpok_cli.engine.runs.measures import Measure
from dpok_cli.engine.sft.measures import SFT_MEASURES

PAGE = Path(__file__).with_name("algorithms.md")


def with_tables(text: str) -> str:
    """Return the page with each table as the code has it now."""
    of_rl = {name: rl_measures(each) for name, each in OBJECTIVES.items()}
    for name, table in (
        ("train-rl", markdown(of_rl, "objective")),
        ("train-sft", markdown({"": SFT_MEASURES})),
    ):
        start, end = f"<!-- metrics of {name} -->\n", "<!-- end -->"
        pattern = re.compile(re.escape(start) + ".*?" + end, re.S)
        if not pattern.search(text):
            raise SystemExit(f"{PAGE.name} has no place for the metrics of {name}.")
        table = f"{start}\n{table}\n{end}"
        text = pattern.sub(lambda _, table=table: table, text)
    return text


def markdown(measures: Mapping[str, Sequence[Measure]], head: str = "") -> str:
    """Return one table of the measures of several things; who has a row is under ``head``.

    A row that all of them have names none.
    """
    rows: list[tuple[str, str, str]] = []
    having: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, own in measures.items():
        place = 0  # a new row follows those of its key, or the row before it
        for row in ((one.key, one.meaning, one.healthy) for one in own):
            if row not in rows:
                alike = [index for index, other in enumerate(rows) if other[0] == row[0]]
                rows.insert(alike[-1] + 1 if alike else place, row)
            having[row].append(name)
            place = rows.index(row) + 1
    extra = f"{head} | " if head else ""
    lines = [f"| metric | {extra}meaning | healthy |", f"|{'---|' * (4 if head else 3)}"]
    for key, meaning, healthy in rows:
        names = having[key, meaning, healthy]
        some = ", ".join(f"`{name}`" for name in names) if len(names) < len(measures) else ""
        lines.append(f"| `{key}` | {f'{some} | ' if head else ''}{meaning} | {healthy} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
