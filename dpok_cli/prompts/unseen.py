"""Prompts that training did not see: for each trained prompt, others that ask for the same skill.

The paper's prompts have the paper's partners (Fan et al. 2023, Sec. 5). Any other is read for its
things, their numbers and colours and its place, and one of them is exchanged for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import NamedTuple

from dpok_cli.tiny.words import (
    ANIMALS,
    COLOURS,
    OBJECTS,
    PAPER_PROMPTS,
    PLACE_PHRASES,
    PLURALS,
    UNSEEN_PROMPTS,
)

#: Variants of a prompt that is not one of the paper's.
VARIANTS = 3

_SINGULAR = {plural: name for name, plural in PLURALS.items()}
_NUMBERS = ("two", "three", "four", "five")
_COUNTS = {word: n for n, word in enumerate(("zero", "one", *_NUMBERS))} | {
    str(n): n for n in range(1, 6)
}
_COLOUR = "|".join((*COLOURS, "grey", "black"))
#: A thing: a number or an article, or a colour, or both, and what ends it.
_THING = re.compile(
    rf"\b(?:(?P<count>an?|the|{'|'.join(_COUNTS)}) )?(?:(?P<colour>{_COLOUR})(?: colou?red)? )?"
    r"(?P<name>[a-z]+)(?= *(?:$|[.,!]| (?:and|in|on|at|that)\b))",
    re.IGNORECASE,
)
_PLACE = re.compile(r"\b(?:in|on|at) (?:the|an?) [a-z]+(?=[ .!]*$)", re.IGNORECASE)
_MEDIUM = re.compile(r"^(?:an? )?(?:photo|picture|drawing|image|painting) of ", re.IGNORECASE)


class Unseen(NamedTuple):
    """What a prompt asks for most of all, and prompts that ask for that with other things."""

    category: str  # "colour", "count", "composition", "location" or "subject"; "" is none
    variants: tuple[str, ...]


def unseen_prompts(prompts: Iterable[str]) -> dict[str, Unseen]:
    """Return for each trained prompt its category and variants that none of ``prompts`` is.

    Capitals, spaces and the full stop do not tell prompts apart. No variant comes twice. A prompt
    in which no thing is found ("justice for all") has the category "" and no variant.
    """
    prompts = list(dict.fromkeys(prompts))
    taken = {plain(prompt) for prompt in prompts}
    result = {}
    for prompt in prompts:
        category, candidates, most = _derive(prompt)
        variants: list[str] = []
        for variant in candidates:
            if len(variants) < most and plain(variant) not in taken:
                taken.add(plain(variant))
                variants.append(variant)
        result[prompt] = Unseen(category, tuple(variants))
    return result


def plain(prompt: str) -> str:
    """Return a prompt without what does not tell it apart."""
    return " ".join(prompt.lower().split()).rstrip(" .!")


def _derive(prompt: str) -> tuple[str, Iterator[str], int]:
    """Return the category, candidates in their order, and how many of them to take."""
    for category, known in PAPER_PROMPTS.items():
        if plain(prompt) == plain(known):
            return category, iter([UNSEEN_PROMPTS[category]]), 1
    medium = _MEDIUM.match(prompt)
    start = medium.end() if medium else 0
    place = _PLACE.search(prompt, start)
    end = place.start() if place else len(prompt)
    things = [
        thing
        for thing in _THING.finditer(prompt, start)
        if thing.end() <= end
        and (thing["count"] or thing["colour"] or _singular(thing["name"]) in OBJECTS)
    ]
    if not things:
        return "", iter(()), 0
    first = things[0]
    count = _number(first)
    if len(things) > 1:
        others, firsts = (
            _names(things[1], OBJECTS[::-1], first),
            _names(first, OBJECTS, things[1]),
        )
        return "composition", _exchanges(prompt, others, firsts), VARIANTS
    names = _names(first, ANIMALS if count > 1 or place else OBJECTS)
    if count > 1:
        numbers = [[(first.span("count"), word)] for word in _NUMBERS if _COUNTS[word] != count]
        return "count", _exchanges(prompt, names, numbers), VARIANTS
    if place:
        return "location", _exchanges(prompt, names, _places(place)), VARIANTS
    category = "colour" if first["colour"] or " that is " in prompt.lower() else "subject"
    return category, (_edit(prompt, edits) for edits in names), VARIANTS


# An edit is a span of the prompt and what comes there.
_Change = list[tuple[tuple[int, int], str]]


def _exchanges(prompt: str, these: list[_Change], those: list[_Change]) -> Iterator[str]:
    """Make one change, then another, then both, and so on."""
    for one, other in zip(these, cycle(those), strict=False):
        yield _edit(prompt, one)
        yield _edit(prompt, other)
        yield _edit(prompt, one + other)


def _names(
    thing: re.Match[str], names: Iterable[str], besides: re.Match[str] | None = None
) -> list[_Change]:
    """Return the changes of a thing's name to each other one, ``besides`` a second thing's."""
    plural = thing["name"].lower() in _SINGULAR or _number(thing) > 1
    taken = {_singular(each["name"]) for each in (thing, besides) if each}
    article = [(thing.span("count"), "a")] if (thing["count"] or "").lower() == "an" else []
    return [
        [(thing.span("name"), PLURALS[name] if plural else name)]
        + ([] if thing["colour"] else article)
        for name in names
        if name not in taken
    ]


def _places(place: re.Match[str]) -> list[_Change]:
    noun = place[0].rpartition(" ")[2].lower()
    phrases = [phrases[0] for name, phrases in PLACE_PHRASES.items() if name != noun]
    return [[(place.span(), phrase)] for phrase in phrases]


def _edit(prompt: str, change: _Change) -> str:
    """Put the change in, from the end to the front; a capital at the start stays one."""
    text = prompt
    for (start, end), new in sorted(change, reverse=True):
        text = text[:start] + new + text[end:]
    return text[0].upper() + text[1:] if prompt[0].isupper() else text


def _number(thing: re.Match[str]) -> int:
    return _COUNTS.get((thing["count"] or "").lower(), 1)


def _singular(name: str) -> str:
    return _SINGULAR.get(name.lower(), name.lower())
