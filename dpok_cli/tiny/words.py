"""The vocabulary of the tiny world: what its images can show, and how prompts ask for it.

The bundled models were trained on images of these objects and on captions of these forms (the
recipe is in ``examples/tiny_world``). Nothing here imports torch.
"""

import re
from dataclasses import dataclass

ANIMALS = ("rabbit", "cat", "dog", "wolf", "bird", "lion")
OBJECTS = (*ANIMALS, "cup")
PLURALS = {name: f"{name}s" for name in OBJECTS} | {"wolf": "wolves"}
COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "white",
    "gray",
    "brown",
)
# A plain background is a place too, but no prompt names it.
PLACES = ("park", "moon", "beach", "snow", "room", "plain")
PLACE_PHRASES = {
    "park": ("in the park", "in a park"),
    "moon": ("on the moon",),
    "beach": ("on the beach", "at the beach"),
    "snow": ("in the snow",),
    "room": ("in a room", "in the room"),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five")
MAX_COUNT = 5

#: Prompts of the four capabilities that the DPOK paper studies (Fan et al. 2023, Sec. 5), each with
#: a partner that is not used in fine-tuning.
PAPER_PROMPTS = {
    "colour": "A green colored rabbit.",
    "composition": "A cat and a dog.",
    "count": "Four wolves in the park.",
    "location": "A dog on the moon.",
}
UNSEEN_PROMPTS = {
    "colour": "A green colored cat.",
    "composition": "A cat and a cup.",
    "count": "Four birds in the park.",
    "location": "A lion on the moon.",
}

_NAMES = {name: name for name in OBJECTS} | {plural: name for name, plural in PLURALS.items()}
_COUNTS = (
    {"a": 1, "an": 1, "the": 1}
    | {word: count for count, word in enumerate(NUMBERS) if count}
    | {str(count): count for count in range(1, MAX_COUNT + 1)}
)
_COLOUR_WORDS = {colour: colour for colour in COLOURS} | {"grey": "gray"}
_MEDIUM = re.compile(r"^(?:an? )?(?:photo|picture|drawing|image|painting) of ")
_THING = re.compile(
    r"^(?:(?P<count>\w+) )?(?:(?P<colour>\w+)(?: colou?red)? )?(?P<name>\w+)"
    r"(?: that (?:is|are) (?P<late_colour>\w+))?$"
)


@dataclass(frozen=True)
class Thing:
    """One kind of object in a scene: ``count`` objects of one ``colour`` (None: unspecified)."""

    name: str
    count: int = 1
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """The content of an image, or of a prompt (``None``: the prompt leaves it open)."""

    things: tuple[Thing, ...]
    place: str | None = None

    def shows(self, asked: "Scene") -> bool:
        """Whether this (complete) scene satisfies ``asked``: the same objects and no others."""
        have = {thing.name: thing for thing in self.things}
        want = {thing.name: thing for thing in asked.things}
        return (
            have.keys() == want.keys()
            and all(have[name].count == thing.count for name, thing in want.items())
            and all(thing.colour in (None, have[name].colour) for name, thing in want.items())
            and asked.place in (None, self.place)
        )


def parse(prompt: str) -> Scene | None:
    """Parse a prompt of the tiny world; ``None`` for any other prompt.

    The grammar is one or two objects joined by "and", each with an optional count (one to five) and
    colour, then an optional place: "Four wolves in the park.", "a green colored rabbit".
    """
    text = " ".join(prompt.lower().replace(",", " ").split()).rstrip(" .!")
    text = _MEDIUM.sub("", text)
    place = None
    for name, phrases in PLACE_PHRASES.items():
        for phrase in phrases:
            if text.endswith(f" {phrase}"):
                place, text = name, text.removesuffix(f" {phrase}")
    things = [_parse_thing(part) for part in text.split(" and ")]
    known = [thing for thing in things if thing is not None]
    names = {thing.name for thing in known}
    if len(known) < len(things) or len(names) < len(known) or len(known) > 2:
        return None
    return Scene(tuple(known), place)


def _parse_thing(text: str) -> Thing | None:
    match = _THING.match(text)
    if match is None or match["name"] not in _NAMES:
        return None
    count, colour = match["count"], match["colour"]
    if colour is None and count in _COLOUR_WORDS:  # "green rabbit" without an article
        count, colour = None, count
    colour = colour or match["late_colour"]
    plural_alone = count is None and match["name"] in PLURALS.values()
    if (
        plural_alone
        or (count is not None and count not in _COUNTS)
        or (colour is not None and colour not in _COLOUR_WORDS)
    ):
        return None
    return Thing(
        _NAMES[match["name"]],
        _COUNTS[count] if count else 1,
        _COLOUR_WORDS[colour] if colour else None,
    )
