"""Write the tables of metrics in algorithms.md from what the code says of each measure.

python docs/metrics_tables.py          # or: make docs
"""

import re
from pathlib import Path

from dpok_cli.engine.rl.measures import rl_measures
from dpok_cli.engine.rl.objectives import OBJECTIVES
from dpok_cli.engine.runs.measures import markdown_table
from dpok_cli.engine.sft.measures import SFT_MEASURES

PAGE = Path(__file__).with_name("algorithms.md")
TABLES = {f"train-rl, {name}": rl_measures(each) for name, each in OBJECTIVES.items()}
TABLES |= {"train-sft": SFT_MEASURES}


def with_tables(text: str) -> str:
    """Return the page with each table as the code has it now."""
    for name, measures in TABLES.items():
        start, end = f"<!-- metrics of {name} -->\n", "<!-- end -->"
        pattern = re.compile(re.escape(start) + ".*?" + end, re.S)
        if not pattern.search(text):
            raise SystemExit(f"{PAGE.name} has no place for the metrics of {name}.")
        table = start + "\n" + markdown_table(measures) + "\n" + end
        text = pattern.sub(lambda _, table=table: table, text)
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
