"""Reading what a command printed."""

import io
import re


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
