"""The two consoles, and plain lines, progress bars and sparklines for them."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from itertools import pairwise
from math import isfinite
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console, RenderableType
from rich.progress import track

Item = TypeVar("Item")

#: The width of a table that is not for a terminal: none of its rows is folded.
UNFOLDED = 1_000_000
#: Seconds between lines of progress where there is no progress bar.
LINE_EVERY = 10.0

STDOUT, STDERR = 1, 2


class _Log:
    """stderr, which may lose its reader: the log's, or the terminal.

    What is written after that is dropped, so that no command fails for it.
    """

    #: Whether the program that read the log has ended.
    has_lost_reader = False

    @property
    def _stream(self) -> TextIO:
        return sys.stderr or self._nowhere  # closed by whoever started dpok

    @cached_property
    def _nowhere(self) -> TextIO:
        return open(os.devnull, "w", encoding="utf-8")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal was closed
            raise error
        self.has_lost_reader = error.errno == errno.EPIPE
        # What the stream still holds has to go somewhere when the program ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


log = _Log()
#: Results go to ``out`` (stdout), everything else to ``err`` (stderr).
out = Console()
err = Console(file=cast("TextIO", log))


@contextmanager
def results_alone() -> Iterator[None]:
    """Keep stdout for ``out``: whatever else is printed in the block goes to stderr.

    This holds for plugins and libraries, their native code and their child processes.
    """
    stdout = sys.stdout
    if stdout is None:  # closed by whoever started dpok
        yield
        return
    stdout.flush()
    kept = divert_stdout()
    try:
        with redirect_stdout(sys.stderr):
            out.file = _result_stream(stdout, kept)
            yield
    finally:
        out.file = None  # type: ignore[assignment]  # whatever sys.stdout is
        if kept is not None:
            os.dup2(kept, STDOUT)
            os.close(kept)


def divert_stdout() -> int | None:
    """Let descriptor 1 be stderr's; returns a copy of the old one, None if it was closed."""
    try:
        os.fstat(STDERR)
    except OSError:  # closed, and the next file that is opened must not take its place
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)
    try:
        kept = os.dup(STDOUT)
    except OSError:
        return None
    os.dup2(STDERR, STDOUT)
    return kept


def _result_stream(stdout: TextIO, kept: int | None) -> TextIO:
    """Return the stream of results: UTF-8 in a file or a pipe, and one that always writes."""
    try:
        is_ours = stdout.fileno() == STDOUT
    except (OSError, ValueError):  # a notebook's
        is_ours = False
    if not is_ours or kept is None:
        return stdout
    encoding = stdout.encoding if os.isatty(kept) else "utf-8"
    return open(kept, "w", encoding=encoding, errors="replace", closefd=False)


def is_terminal(console: Console) -> bool:
    """Whether a console is a terminal, which FORCE_COLOR does not make it."""
    return console.file.isatty()


def is_live(console: Console) -> bool:
    """Whether a console can draw over what it has drawn."""
    return is_terminal(console) and not console.is_dumb_terminal


def say(text: str, console: Console | None = None) -> None:
    """Print a text without markup, to stderr by default; a result is written as it is.

    Lines are wrapped on a terminal's stderr only, between words.
    """
    if console is out:
        try:
            out.file.write(f"{text}\n")  # rich would replace tabs
            out.file.flush()
        except BrokenPipeError:
            out.on_broken_pipe()
        return
    one_line = not is_terminal(err)
    err.print(text, markup=False, emoji=False, highlight=False, soft_wrap=one_line)


def show(table: RenderableType) -> None:
    """Print a table to stdout, folded to a terminal's width; elsewhere a row is a line."""
    if is_terminal(out):
        out.print(table)
        return
    text = io.StringIO()
    Console(file=text, width=UNFOLDED).print(table)
    say("\n".join(line.rstrip() for line in text.getvalue().splitlines()), out)


def progress(items: Iterable[Item], total: int, what: str, quiet: bool = False) -> Iterable[Item]:
    """Yield the items, with a progress bar if stderr is a terminal, else with a line at times."""
    if quiet or is_live(err):
        return track(items, what, total, console=err, transient=True, disable=quiet)
    return _with_lines(items, total, what)


def _with_lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    last = time.monotonic()
    for number, item in enumerate(items, 1):
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            say(f"{what} {number}/{total}")
        yield item


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw values as one line; more than ``width`` of them are averaged into columns.

    A column of values that are not finite is blank.
    """
    columns = min(width, len(values))
    edges = [len(values) * column // columns for column in range(columns + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    finite = [mean for mean in means if isfinite(mean)] or [0.0]
    low, high = min(finite), max(finite)
    scale = 7 / (high - low) if high > low else 0.0
    bars = (round((mean - low) * scale) if isfinite(mean) else None for mean in means)
    return "".join(" " if bar is None else "▁▂▃▄▅▆▇█"[bar] for bar in bars)


def duration(seconds: float) -> str:
    """Format a time as 4:05 or 1:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
