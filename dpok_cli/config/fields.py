"""A setting is a dataclass field: its default, panel, help and range stand together there.

rounds: int = setting(60, "Rollout", "Training rounds.", at_least(1))
"""

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from dpok_cli.errors import InputError, suggest
from dpok_cli.inputs import at_home, is_unicode

#: The panels of a command's help, in their order there.
Panel = Literal[
    "Model",
    "Prompts",
    "Reward",
    "Sampling",
    "Rollout",
    "Images",
    "Objective",
    "Optimisation",
    "Adapter",
    "Run",
]

#: Of settings whose flag, which is repeated, has another name.
FLAGS = {"prompts": "prompt", "rewards": "reward"}

T = TypeVar("T")


class Rule(NamedTuple):
    """A range: ``text`` completes "must be ..."."""

    text: str
    holds: Callable[[Any], bool]
    #: Whether each item of a list is tested, not the list.
    each: bool = False


def at_least(low: float) -> Rule:
    return Rule(f">= {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    return Rule(f"> {low}", lambda value: value > low)


def within(low: float, high: float, ends: str = "[]") -> Rule:
    """Return the rule of an interval; ``ends`` is "[]", "[)", "(]" or "()"."""

    def holds(value: float) -> bool:
        return (
            low < value < high or (value == low and "[" in ends) or (value == high and "]" in ends)
        )

    return Rule(f"in {ends[0]}{low}, {high}{ends[1]}", holds)


class Held(NamedTuple):
    """What a setting keeps in memory at once: so many latents, and images that are decoded."""

    setting: str
    latents: int = 0
    images: int = 0


@dataclass(frozen=True)
class Setting:
    """What a field declares besides its name, type and default."""

    panel: Panel
    help: str
    rule: Rule | None = None
    #: The flag's name, if it differs from the field's.
    flag: str = ""
    metavar: str | None = None
    #: Whether it may change when a run is resumed.
    may_change: bool = False
    #: Whether it is a path, in which a leading ~ is the home folder.
    path: bool = False


def setting(
    default: T,
    panel: Panel,
    help: str,
    rule: Rule | None = None,
    *,
    flag: str = "",
    metavar: str | None = None,
    may_change: bool = False,
    path: bool = False,
) -> T:
    """Declare a setting, as the value of a dataclass field."""
    known = Setting(panel, help, rule, flag, metavar, may_change, path)
    return field(default=default, metadata={"setting": known})


def changed(parent: type, name: str, default: T, **different: Any) -> T:
    """Declare a parent's setting with another default, and with a ``different`` help or rule."""
    known = replace(settings_of(parent)[name], **different)
    return field(default=default, metadata={"setting": known})


def settings_of(kind: type) -> dict[str, Setting]:
    """Return the settings of a config class, by the names of their fields."""
    return {each.name: each.metadata["setting"] for each in fields(kind)}


def flag(name: str) -> str:
    """Return the flag of a setting, for messages; ``name`` is its field's, or the flag's own."""
    return "--" + FLAGS.get(name, name).replace("_", "-")


def typed(key: str, kind: type, value: str) -> str:
    """Return an entry of a settings file as the user types it: as a flag, if it has one."""
    return f"{flag(key)} {value}" if key in settings_of(kind) else f"{key} = {value}"


def shown(value: object) -> str:
    """Write a setting's value for a message; several are separated by commas."""
    if isinstance(value, list | tuple):
        return ", ".join(map(repr, value)) or "none"
    return repr(value)


def must(holds: bool, name: str, value: object, what: str) -> None:
    """Raise InputError unless a condition holds; ``what`` completes "must be ..."."""
    if not holds:
        raise InputError(f"{flag(name)} {shown(value)}: must be {what}.")


@dataclass(frozen=True)
class BaseConfig:
    """A config whose values are checked when it is made; raises InputError.

    A command's config may be put together from several classes. Each may have a
    ``check(self, config)`` for rules across fields: ``config`` is the complete config, of which a
    mixin that is declared elsewhere is only a part.
    """

    #: The command, whose table in a config file holds these settings.
    command: ClassVar[str]

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for name, known in settings_of(type(self)).items():
            typed = known.flag or name
            value = _of_type(typed, getattr(self, name), types[name])
            if known.path:
                value = at_home(value)
            object.__setattr__(self, name, value)
            if known.rule:
                for one in value if known.rule.each else (value,):
                    must(known.rule.holds(one), typed, one, known.rule.text)
        for part in reversed(type(self).__mro__):
            if check := vars(part).get("check"):
                check(self, self)


_NOUN = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _of_type(name: str, value: Any, kind: Any) -> Any:
    """Return a value in the type of its field: lists become tuples, whole numbers floats.

    Raises InputError for every other mismatch, and for numbers that are not finite.
    """
    if isinstance(value, list):
        value = tuple(value)
    for one in value if isinstance(value, tuple) else (value,):
        must("\0" not in str(one), name, one, "without the character NUL")
        must(is_unicode(str(one)), name, one, "UTF-8 text")
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            advice = suggest(str(value), filter(None, choices))
            raise InputError(f"{flag(name)} {value!r}: no such choice.{advice}")
    elif typing.get_origin(kind) is tuple:
        texts = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
        must(texts, name, value, "a list of strings")
    else:
        whole = isinstance(value, int) and not isinstance(value, bool)
        must(not whole or abs(value) < 2**63, name, value, "below 2^63")
        if kind is float and whole:
            value = float(value)
        of_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        must(of_kind, name, value, _NOUN[kind])
        must(kind is not float or math.isfinite(value), name, value, "a finite number")
    return value
