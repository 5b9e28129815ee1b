"""Unseen prompts: for each trained prompt, variants that test the same skill.

The paper's prompts have the paper's partners (Fan et al. 2023, Sec. 5). Other prompts are parsed
for things, their numbers and colours, and a place; a variant replaces one or two of these.
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

#: Variants per prompt; the paper's prompts have one partner.
VARIANTS = 3

_SINGULAR = {plural: name for name, plural in PLURALS.items()}
_NUMBERS = ("two", "three", "four", "five")
_COUNTS = {word: n for n, word in enumerate(("zero", "one", *_NUMBERS))} | {
    str(n): n for n in range(1, 6)
}
_COLOUR = "|".join((*COLOURS, "grey", "black"))
#: A thing: an optional number or article, an optional colour, and a noun before a boundary.
_THING = re.compile(
    rf"\b(?:(?P<count>an?|the|{'|'.join(_COUNTS)}) )?(?:(?P<colour>{_COLOUR})(?: colou?red)? )?"
    r"(?P<name>[a-z]+)(?= *(?:$|[.,!]| (?:and|in|on|at|that)\b))",
    re.IGNORECASE,
)
_PLACE = re.compile(r"\b(?:in|on|at) (?:the|an?) [a-z]+(?=[ .!]*$)", re.IGNORECASE)
_MEDIUM = re.compile(r"^(?:an? )?(?:photo|picture|drawing|image|painting) of ", re.IGNORECASE)


class Unseen(NamedTuple):
    """The skill that a prompt tests, and variants that test it with other things."""

    category: str  # "colour", "count", "composition", "location", "subject" or ""
    variants: tuple[str, ...]


def unseen_prompts(prompts: Iterable[str]) -> dict[str, Unseen]:
    """Return the category and variants of each trained prompt; no variant is in ``prompts``.

    Prompts are compared by `plain`. No variant occurs twice. A prompt without a recognised thing
    ("justice for all") has the category "" and no variants.
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
    """Return a prompt in lower case, with single spaces and without final punctuation."""
    return " ".join(prompt.lower().split()).rstrip(" .!")


def _derive(prompt: str) -> tuple[str, Iterator[str], int]:
    """Return the category, candidates in order of preference, and how many of them to take."""
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


# Replacements: spans of the prompt and their new texts.
_Change = list[tuple[tuple[int, int], str]]


def _exchanges(prompt: str, these: list[_Change], those: list[_Change]) -> Iterator[str]:
    """Yield prompts with the first change of each list, the other one, both, and so on."""
    for one, other in zip(these, cycle(those), strict=False):
        yield _edit(prompt, one)
        yield _edit(prompt, other)
        yield _edit(prompt, one + other)


def _names(
    thing: re.Match[str], names: Iterable[str], besides: re.Match[str] | None = None
) -> list[_Change]:
    """Return the changes of a thing's name to each of ``names`` but its own and ``besides``'s."""
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
    """Apply the change, from the end to the start; a capital first letter is kept."""
    text = prompt
    for (start, end), new in sorted(change, reverse=True):
        text = text[:start] + new + text[end:]
    return text[0].upper() + text[1:] if prompt[0].isupper() else text


def _number(thing: re.Match[str]) -> int:
    return _COUNTS.get((thing["count"] or "").lower(), 1)


def _singular(name: str) -> str:
    return _SINGULAR.get(name.lower(), name.lower())
