"""The two consoles, and plain lines, progress bars and sparklines for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")

#: Results go to ``out`` (stdout), everything else to ``err`` (stderr).
out = Console()
err = Console(stderr=True)


def say(text: str, console: Console | None = None) -> None:
    """Print a text without markup, to stderr by default.

    Lines are not wrapped, except on a terminal's stderr, between words.
    """
    one_line = console is not None or not err.is_terminal
    (console or err).print(text, markup=False, emoji=False, highlight=False, soft_wrap=one_line)


def progress(items: Iterable[Item], total: int, what: str, quiet: bool = False) -> Iterable[Item]:
    """Yield the items, with a progress bar if stderr is a terminal."""
    hidden = quiet or not err.is_terminal
    return track(items, what, total, console=err, transient=True, disable=hidden)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw values as one line; more than ``width`` of them are averaged into columns."""
    columns = min(width, len(values))
    edges = [len(values) * column // columns for column in range(columns + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Format a time as 4:05 or 1:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
