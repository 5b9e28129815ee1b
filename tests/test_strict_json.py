"""JSON that any parser reads."""

import json
import math

import pytest

from dpok_cli.strict_json import dumps, numbers, strict


def no_constant(name):
    raise ValueError(name)


def test_numbers_that_are_not_finite_are_null_wherever_they_are():
    tree = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2)}], "d": "NaN", "e": True}
    text = dumps(tree, indent=2)
    assert json.loads(text, parse_constant=no_constant) == {
        "a": None,
        "b": [1.5, None, {"c": [None, 2]}],
        "d": "NaN",
        "e": True,
    }


def test_half_a_character_is_written_as_its_escape():
    text = dumps({"\udcff": "caf\udce9 猫"}, ensure_ascii=False)
    assert text == r'{"\\udcff": "caf\\udce9 猫"}'
    text.encode()


def test_other_values_need_a_default():
    assert dumps({1: b"x"}, default=str) == '{"1": "b\'x\'"}'
    with pytest.raises(TypeError):
        dumps(object())


def test_a_record_has_its_numbers_back():
    record = strict({"step": 3, "loss": math.nan})
    assert record == {"step": 3, "loss": None}
    again = numbers(record)
    assert again["step"] == 3
    assert math.isnan(again["loss"])
