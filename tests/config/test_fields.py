"""A setting at its field: rules and their messages, types, changed defaults, mixins."""

from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import ClassVar, Literal, get_args, get_type_hints

import pytest

from dpok_cli.config import EvaluateConfig, SampleConfig, TrainSFTConfig
from dpok_cli.config.fields import (
    BaseConfig,
    Panel,
    Rule,
    above,
    at_least,
    changed,
    flag,
    must,
    setting,
    settings_of,
    shown,
    typed,
    within,
)
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.errors import InputError

KINDS = (TrainRLConfig, TrainSFTConfig, SampleConfig, EvaluateConfig)


@dataclass(frozen=True)
class Garden(BaseConfig):
    command: ClassVar[str] = "grow"

    trees: int = setting(3, "Run", "Trees.", at_least(1), may_change=True)
    shade: float = setting(0.5, "Run", "Share in the shade.", within(0, 1))
    wild: bool = setting(False, "Run", "Whether it is wild.")
    fence: Literal["", "wood", "stone"] = setting("wood", "Run", "Fence.", metavar="KIND")
    herbs: tuple[str, ...] = setting(
        (), "Run", "Herb.", Rule("short", lambda herb: len(herb) < 6, each=True), flag="herb"
    )
    owner: str = setting("", "Run", "Owner.")


@dataclass(frozen=True)
class Ponds:  # knows nothing of Garden
    ponds: int = setting(1, "Model", "Ponds.", at_least(0))

    def check(self, config):
        must(config.ponds <= config.trees, "ponds", config.ponds, "at most the number of trees")


@dataclass(frozen=True)
class Orchard(Garden):
    trees: int = changed(Garden, "trees", 20, help="Fruit trees.")
    shade: float = changed(Garden, "shade", 0.25, rule=within(0, 0.5))

    def check(self, config):
        must(config.wild or config.trees > 5, "trees", config.trees, "> 5 unless it is wild")


@dataclass(frozen=True)
class Park(Ponds, Orchard):
    pass


def refusal(kind, **values):
    with pytest.raises(InputError) as caught:
        kind(**values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("rule", "text", "inside", "outside"),
    [
        (at_least(1), ">= 1", [1, 2, 1e9], [0, 0.999, -5]),
        (above(0), "> 0", [1e-9, 3], [0, 0.0, -1e-9]),
        (within(0, 1), "in [0, 1]", [0, 0.5, 1], [-0.1, 1.1]),
        (within(0, 1, "[)"), "in [0, 1)", [0, 0.9], [1, -0.1]),
        (within(0, 1, "(]"), "in (0, 1]", [0.1, 1], [0, 1.1]),
        (within(2, 4, "()"), "in (2, 4)", [3], [2, 4]),
    ],
)
def test_rules(rule, text, inside, outside):
    assert rule.text == text
    assert [rule.holds(value) for value in inside] == [True] * len(inside)
    assert [rule.holds(value) for value in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trees": 0}, "--trees 0: must be >= 1."),
        ({"trees": 2.0}, "--trees 2.0: must be a whole number."),
        ({"trees": True}, "--trees True: must be a whole number."),
        ({"trees": 2**63}, f"--trees {2**63}: must be below 2^63."),
        ({"trees": None}, "--trees None: must be a whole number."),
        ({"shade": 1.5}, "--shade 1.5: must be in [0, 1]."),
        ({"shade": float("nan")}, "--shade nan: must be a finite number."),
        ({"shade": float("-inf")}, "--shade -inf: must be a finite number."),
        ({"shade": "much"}, "--shade 'much': must be a number."),
        ({"shade": False}, "--shade False: must be a number."),
        ({"wild": 1}, "--wild 1: must be true or false."),
        ({"fence": "woood"}, "--fence 'woood': no such choice. Did you mean 'wood'? Known: stone"),
        ({"herbs": "mint"}, "--herb 'mint': must be a list of strings."),
        ({"herbs": ["mint", 3]}, "--herb 'mint', 3: must be a list of strings."),
        ({"herbs": ["mint", "rosemary"]}, "--herb 'rosemary': must be short."),
        ({"owner": 3}, "--owner 3: must be a string."),
        ({"owner": "a\0"}, r"--owner 'a\x00': must be without the character NUL."),
    ],
)
def test_messages(values, message):
    assert refusal(Garden, **values).startswith(message)


def test_messages_have_settings_as_they_are_typed():
    assert [flag(name) for name in ("batch_size", "prompts", "reward")] == [
        "--batch-size",
        "--prompt",
        "--reward",
    ]
    assert shown(("a", "b")) == "'a', 'b'"
    assert (shown(()), shown("x"), shown(0.5)) == ("none", "'x'", "0.5")
    assert typed("trees", Garden, "3") == "--trees 3"
    assert typed("weights", Garden, "3") == "weights = 3"


def test_lists_become_tuples_and_whole_numbers_floats():
    garden = Garden(herbs=["mint", "dill"], shade=1, fence="")
    assert garden.herbs == ("mint", "dill")
    assert repr(garden.shade) == "1.0"
    assert garden.fence == ""


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Garden().trees = 4


def test_what_a_field_knows():
    known = settings_of(Garden)
    assert list(known) == ["trees", "shade", "wild", "fence", "herbs", "owner"]
    assert (known["trees"].panel, known["trees"].help) == ("Run", "Trees.")
    assert [name for name, each in known.items() if each.may_change] == ["trees"]
    assert (known["herbs"].flag, known["fence"].metavar) == ("herb", "KIND")


def test_a_changed_default_keeps_the_rest():
    known, before = settings_of(Orchard), settings_of(Garden)
    assert (Orchard().trees, Orchard().shade) == (20, 0.25)
    assert known["trees"] == replace(before["trees"], help="Fruit trees.")
    assert known["shade"].help == "Share in the shade."
    assert refusal(Orchard, trees=0) == "--trees 0: must be >= 1."
    assert refusal(Orchard, shade=0.75) == "--shade 0.75: must be in [0, 0.5]."


def test_a_mixin_brings_its_fields_rules_and_check():
    assert list(settings_of(Park)) == [*settings_of(Garden), "ponds"]
    assert (Park().ponds, Park().trees) == (1, 20)
    assert refusal(Park, ponds=-1) == "--ponds -1: must be >= 0."
    assert refusal(Park, ponds=21) == "--ponds 21: must be at most the number of trees."
    # the checks of the other parents run as well
    assert refusal(Park, trees=5) == "--trees 5: must be > 5 unless it is wild."
    assert Park(trees=5, wild=True, ponds=5).ponds == 5


# ------------------------------------------------------------------------ the commands' settings


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_a_panel_and_a_help(kind):
    for name, known in settings_of(kind).items():
        assert known.panel in get_args(Panel), name
        assert known.help[0].isupper(), name
        assert known.help.endswith("."), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_a_range_that_its_default_is_in(kind):
    types = get_type_hints(kind)
    numbers = [field for field in fields(kind) if types[field.name] in (int, float)]
    assert len(numbers) >= 7
    for field in numbers:
        rule = settings_of(kind)[field.name].rule
        assert rule, field.name
        assert rule.holds(field.default), field.name
        below = -2 if field.name == "evaluation_eta" else -1  # -1 is as in training
        assert not rule.holds(below), field.name


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_settings_have_the_same_flag(kind):
    names = [known.flag or name for name, known in settings_of(kind).items()]
    assert len(set(names)) == len(names)
