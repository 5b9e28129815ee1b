"""What a training measures: each number's meaning, its healthy range, and what to do outside it.

The view's rows and hints, the plot, and the tables of docs/algorithms.md are made from these.
Without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, float]
#: From the records so far (one or more) and the config: what is unhealthy and what to do, or None.
Advice = Callable[[Sequence[Record], Any], str | None]


@dataclass(frozen=True)
class Measure:
    """One key of metrics.jsonl."""

    key: str
    meaning: str
    healthy: str = ""  # its healthy range, in words
    label: str = ""  # its name in the view, which leaves out those without one
    form: str = ".3f"  # its format there
    plotted: bool = False  # whether the view and the plot draw its course
    spread: str = ""  # the key of a standard deviation that the view shows with it
    advice: Advice | None = None

    def text(self, record: Record) -> str:
        """Write the measure's value in a record, as the view shows it."""
        value = f"{record[self.key]:{self.form}}"
        return f"{value} ± {record[self.spread]:{self.form}}" if self.spread else value


def advice(measures: Iterable[Measure], records: Sequence[Record], config: Any) -> dict[str, str]:
    """Return, by key, what to do about each measure that is unhealthy in the newest record."""
    found = {}
    for measure in measures:
        if measure.advice and (hint := measure.advice(records, config)):
            found[measure.key] = hint
    return found
