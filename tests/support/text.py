"""Reading what a command printed."""

import re


def rows(text: str) -> list[list[str]]:
    """Return the words of each line."""
    return [line.split() for line in text.splitlines()]


def numbers(text: str) -> list[int]:
    """Return the whole numbers in their order, whatever the words between them."""
    return [int(number) for number in re.findall(r"\d+", text)]
