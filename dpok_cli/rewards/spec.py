"""The grammar of ``--reward NAME[=WEIGHT][:KEY=VALUE,...]``."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dpok_cli.errors import InputError, suggest
from dpok_cli.inputs import at_home
from dpok_cli.rewards.base import RewardModel

GRAMMAR = "NAME[=WEIGHT][:KEY=VALUE,...]"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_BOOLS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True)
class RewardSpec:
    """A parsed spec; ``parse_spec(str(spec))`` gives an equal one."""

    name: str
    weight: float = 1.0
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f"={self.weight!r}".removesuffix(".0")
        options = ",".join(f"{key}={_quoted(value)}" for key, value in self.options.items())
        return self.name + weight + (f":{options}" if options else "")


def parse_spec(text: str) -> RewardSpec:
    """Parse ``NAME[=WEIGHT][:KEY=VALUE,...]``; raises ``InputError``.

    The first colon ends the name and weight, and the first "=" of a pair ends its key. Values may
    therefore contain both (``http:url=http://host:80``). A value with a comma is in double quotes,
    within which a quote is doubled, as in CSV.
    """

    def error(what: str) -> InputError:
        return InputError(f"Reward {text!r}: {what}. The form is {GRAMMAR}.")

    head, colon, tail = text.strip().partition(":")
    name, equals, number = (part.strip() for part in head.partition("="))
    if not name:
        raise error("the name is missing")
    try:
        weight = float(number) if equals else 1.0
    except ValueError:
        raise error(f"the weight {number!r} is not a number") from None
    if not math.isfinite(weight) or weight == 0:
        raise error(f"the weight {number} must be finite and not zero")
    options: dict[str, str] = {}
    for pair in _pairs(tail) if colon else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not key or not equals:
            raise error(f"the option {pair!r} is not of the form KEY=VALUE")
        if key in options:
            raise error(f"the option {key!r} is given twice")
        if value.startswith('"'):
            if not _QUOTED.fullmatch(value):
                raise error(f"the option {key!r} starts with a quote, which must end it")
            value = value[1:-1].replace('""', '"')
        options[key] = value
    return RewardSpec(name, weight, options)


def _pairs(tail: str) -> Iterator[str]:
    """Yield the pairs between commas; those within a value in quotes belong to it."""
    parts = iter(tail.split(","))
    for pair in parts:
        while not _is_whole(pair) and (more := next(parts, None)) is not None:
            pair += f",{more}"
        yield pair


def _is_whole(pair: str) -> bool:
    value = pair.partition("=")[2].strip()
    return not value.startswith('"') or bool(_QUOTED.fullmatch(value))


def _quoted(value: str) -> str:
    """Return a value as it stands in a spec."""
    if "," in value or value.startswith('"') or value != value.strip():
        return '"' + value.replace('"', '""') + '"'
    return value


def located(text: str) -> str:
    """Return a spec with absolute paths, so that it means the same in any folder.

    Paths are the values with a slash that exist, as plugins look there before the hub.
    """
    spec = parse_spec(text)
    paths = {
        key: os.path.abspath(at_home(value))
        for key, value in spec.options.items()
        if os.sep in value and os.path.exists(at_home(value))
    }
    return str(replace(spec, options=spec.options | paths)) if paths else text


def spec_of(reward: RewardModel) -> str:
    """Return this reward's spec without a weight; it identifies the scores."""
    options = {
        field_.name: str(getattr(reward.options, field_.name))
        for field_ in dataclasses.fields(reward.options)
        if getattr(reward.options, field_.name) != field_.default
    }
    return str(RewardSpec(reward.name, options=options))


def make_options(reward: type[RewardModel], given: dict[str, str]) -> Any:
    """Cast ``given`` to the types of ``reward.Options``'s fields; raises ``InputError``."""
    fields = {field.name: field for field in dataclasses.fields(reward.Options) if field.init}
    types_ = get_type_hints(reward.Options)
    for key in given:
        if key not in fields:
            known = suggest(key, fields)
            raise InputError(f"Reward {reward.name!r} has no option {key!r}.{known}")
    for key, field_ in fields.items():
        if key not in given and field_.default is field_.default_factory is dataclasses.MISSING:
            raise InputError(
                f"Reward {reward.name!r} needs the option {key!r}: {reward.name}:{key}=..."
            )
    values = {}
    for key, text in given.items():
        try:
            values[key] = _cast(text, types_[key])
        except ValueError as error:
            raise InputError(
                f"Reward {reward.name!r}: option {key}={text!r} must be {error}."
            ) from None
    try:
        return reward.Options(**values)
    except ValueError as error:  # the options' own checks
        raise InputError(f"Reward {reward.name!r}: {error}") from error


def _cast(text: str, kind: Any) -> Any:
    """Cast to the type of an option; the ``ValueError`` states the expected form."""
    if get_origin(kind) in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        kinds = [each for each in get_args(kind) if each is not types.NoneType]
        try:
            return _cast(text, kinds[0])
        except ValueError as error:
            raise ValueError(f"{error}, or none") from None
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if text == str(choice):
                return choice
        raise ValueError(f"one of {', '.join(map(str, get_args(kind)))}")
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ValueError("true or false")
        return _BOOLS[text.lower()]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError("a whole number") from None
    if kind is float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError("a finite number")
        return number
    if kind is str:
        return text
    raise TypeError(f"an option cannot be of type {kind}")
