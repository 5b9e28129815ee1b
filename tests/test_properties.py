"""Whatever text there is: it is read as it was written, or refused as input."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dpok_cli.config import EvaluateConfig, SampleConfig, TrainSFTConfig, presets, resolve, to_toml
from dpok_cli.config.fields import flag
from dpok_cli.config.flags import parse_seeds
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.errors import InputError
from dpok_cli.prompts.files import PromptFile
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.spec import RewardSpec, make_options, parse_spec

few = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
#: Texts that come near the grammar.
specs = st.text(st.sampled_from("ab:=,. -+1e0\tnif_é"), max_size=20) | st.text(max_size=20)


def read(function, *arguments, **more):
    """Return what a function reads, or None, and why it refused, or ""."""
    try:
        return function(*arguments, **more), ""
    except InputError as error:
        return None, str(error) or "?"


class Odd(RewardModel):
    name = "odd"

    @dataclass(frozen=True)
    class Options:
        whole: int = 1
        number: float | None = None
        text: str = ""
        flag: bool = False
        choice: Literal["a", "b"] = "a"

    def score_batch(self, images, prompts):
        raise NotImplementedError


@few
@given(specs)
def test_a_spec_is_read_as_it_is_written_or_refused(text):
    spec, refused = read(parse_spec, text)
    if refused:
        assert repr(text) in refused
        return
    assert spec.name == spec.name.strip() != ""
    assert math.isfinite(spec.weight)
    assert spec.weight != 0
    assert parse_spec(str(spec)) == spec


@few
@given(
    st.text(st.characters(exclude_characters=":=", exclude_categories=["Z", "C"]), min_size=1),
    st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    st.dictionaries(
        st.text(st.sampled_from("abc_é:"), min_size=1, max_size=5),
        st.text(st.sampled_from("ab:=/ é").filter(str.strip) | st.sampled_from("xyz"), max_size=8),
        max_size=3,
    ),
)
def test_every_spec_can_be_written(name, weight, options):
    spec = RewardSpec(name, weight, options)
    assert parse_spec(str(spec)) == spec


@few
@given(
    st.dictionaries(
        st.sampled_from([field.name for field in fields(Odd.Options)]) | st.text(max_size=5),
        st.sampled_from(["1", "true", "none", "nan", "-1e9", "a", "9" * 5000])
        | st.text(max_size=8),
        max_size=4,
    )
)
def test_options_are_of_their_types_or_refused(given_):
    options, refused = read(make_options, Odd, given_)
    if refused:
        assert "'odd'" in refused
        return
    assert type(options.whole) is int
    assert options.number is None or math.isfinite(options.number)
    assert type(options.flag) is bool
    assert options.choice in ("a", "b")
    assert options.text == given_.get("text", "")


# -------------------------------------------------------------------------------- config files


def values(kind):
    """Values of a field's type, most of them in its range."""
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        return st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=3).map(tuple)
    return {
        bool: st.booleans(),
        int: st.integers(0, 2**62),
        float: st.floats(0, 1) | st.floats(allow_nan=False, allow_infinity=False),
        str: st.sampled_from(["", "x"]) | st.text(max_size=10),
    }[kind]


@pytest.mark.parametrize("kind", [TrainRLConfig, TrainSFTConfig, SampleConfig, EvaluateConfig])
@few
@given(data=st.data())
def test_a_config_is_read_as_it_is_written(kind, data, tmp_path):
    hints = get_type_hints(kind)
    types = {field.name: hints[field.name] for field in fields(kind)}
    keys = data.draw(st.sets(st.sampled_from(sorted(types)), max_size=6))
    preset = data.draw(st.sampled_from(presets(kind)))
    flags = {key: data.draw(values(types[key])) for key in keys}
    config, refused = read(resolve, kind, preset, **flags)
    assume(not refused)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8", newline="")
    assert resolve(kind, file=file) == config


@few
@given(st.dictionaries(
    st.sampled_from([field.name for field in fields(TrainRLConfig)]) | st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ),
    max_size=4,
))  # fmt: skip
def test_whatever_a_config_holds_is_taken_or_refused(held):
    known = {field.name for field in fields(TrainRLConfig)}
    held = {key: tuple(v) if isinstance(v, list) else v for key, v in held.items() if key in known}
    config, refused = read(TrainRLConfig, **held)
    if refused:
        assert any(key in refused or flag(key) in refused for key in held)
        return
    assert {key: getattr(config, key) for key in held} == held


TOML = st.text(st.sampled_from("rounds=eta[]\"'#.{}\n 0123456789\\ué\0"), max_size=40)


@few
@given(st.binary(max_size=40) | TOML.map(str.encode))
def test_whatever_a_file_holds_is_read_or_refused(tmp_path, content):
    file = tmp_path / "file.toml"
    file.write_bytes(content)
    config, refused = read(resolve, TrainRLConfig, file=file)
    assert isinstance(config, TrainRLConfig) or refused
    for name in (f"prompts{end}" for end in ("", ".txt", ".csv", ".tsv", ".json", ".jsonl")):
        file = tmp_path / name
        file.write_bytes(content)
        prompts, refused = read(PromptFile(file).prompts)
        if refused:
            assert str(file) in refused
        else:
            assert prompts
            assert all(isinstance(each, str) and each == each.strip() != "" for each in prompts)


@few
@given(st.text(st.sampled_from("0123456789,- ٣x"), max_size=12) | st.text(max_size=8))
def test_seeds_are_read_or_refused(text):
    seeds, refused = read(parse_seeds, text)
    if refused:
        assert repr(text) in refused
        return
    assert len(set(seeds)) == len(seeds) > 0
    assert all(0 <= seed < 2**63 for seed in seeds)
