"""What a person sees: plain lines, bars and tables. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

Item = TypeVar("Item")

#: Results go to ``out`` (stdout), everything else to ``err`` (stderr).
out = Console()
err = Console(stderr=True)


def say(text: str, console: Console | None = None) -> None:
    """Print a text as it is, without markup, to stderr if not told otherwise.

    It is one line, except that a terminal's stderr is wrapped between words.
    """
    one_line = console is not None or not err.is_terminal
    (console or err).print(text, markup=False, emoji=False, highlight=False, soft_wrap=one_line)


def progress(items: Iterable[Item], total: int, what: str, quiet: bool = False) -> Iterable[Item]:
    """Show on a terminal how many of the items have come."""
    hidden = quiet or not err.is_terminal
    return track(items, what, total, console=err, transient=True, disable=hidden)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw one or more values as one line; over ``width`` of them are averaged into columns."""
    columns = min(width, len(values))
    edges = [len(values) * column // columns for column in range(columns + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Write a time as 4:05 or 1:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def before_after_table(before: dict[str, float], after: dict[str, float]) -> Table:
    """Make the table of the same measures before and after training."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, value in before.items():
        table.add_row(name, f"{value:.3f}", f"{after[name]:.3f}", f"{after[name] - value:+.3f}")
    return table
