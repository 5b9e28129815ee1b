"""Reading what a command printed."""

import io
import re
from collections.abc import Callable
from pathlib import Path


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True


def rows(text: str) -> list[list[str]]:
    """Return the words of each line."""
    return [line.split() for line in text.splitlines()]


def numbers(text: str) -> list[int]:
    """Return the whole numbers in their order, whatever the words between them."""
    return [int(number) for number in re.findall(r"\d+", text)]


def has_lines(file: Path, count: int) -> Callable[[], bool]:
    """Return a stop that comes once a file has so many lines."""
    return lambda: file.exists() and len(file.read_text().splitlines()) >= count
