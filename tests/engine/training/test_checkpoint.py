"""Checkpoints: what goes in comes out, a damaged one is passed over, none is ever half there."""

import json
import math
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dpok_cli.engine.training import checkpoint
from dpok_cli.errors import InputError

STATE = {
    "number": 3,
    "name": "r\u00e9sum\u00e9",
    "nothing": None,
    "rates": [0.1, 1e-300, True, float("inf"), float("-inf")],
    "adapter": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])},
    "list": [{"half": torch.tensor([0.5], dtype=torch.float16)}, []],
    "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(map(str, a)) == list(b) and all(same(a[key], b[str(key)]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_what_goes_in_comes_out(tmp_path):
    checkpoint.write(tmp_path, 3, STATE, keep=2)
    state, damaged = checkpoint.read_latest(tmp_path)
    assert same(STATE, state)
    assert damaged == []
    assert not same(STATE | {"number": 4}, state)


def test_a_number_that_is_not_finite_comes_out_and_the_header_is_json(tmp_path):
    path = checkpoint.write(tmp_path, 1, {"norm": [float("nan")]}, keep=1)
    assert math.isnan(checkpoint.read(path)["norm"][0])
    with safe_open(path / checkpoint.STATE, "pt") as file:
        assert json.loads(file.metadata()["state"]) == {"norm": [{"__number__": "nan"}]}


def test_the_newest_are_kept_and_nothing_else_is_left(tmp_path):
    for number in (1, 2, 3, 10):
        checkpoint.write(tmp_path, number, {"number": number}, keep=2)
    assert checkpoint.numbers(tmp_path) == [3, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000003", "000010"]
    assert checkpoint.read_latest(tmp_path)[0] == {"number": 10}


def test_without_one_there_is_nothing_to_go_on_from(tmp_path):
    assert checkpoint.read_latest(tmp_path / "none") == (None, [])


def truncate(path):
    file = path / checkpoint.STATE
    file.write_bytes(file.read_bytes()[:-1])


def flip(path):
    file = path / checkpoint.STATE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def forget(path):
    (path / checkpoint.MANIFEST).unlink()


def scribble(path):
    (path / checkpoint.MANIFEST).write_text("{", encoding="utf-8")


def lose(path):
    (path / checkpoint.STATE).unlink()


@pytest.mark.parametrize("damage", [truncate, flip, forget, scribble, lose])
def test_a_damaged_one_is_passed_over_and_named(tmp_path, damage):
    for number in (1, 2):
        checkpoint.write(tmp_path, number, STATE | {"number": number}, keep=2)
    damage(tmp_path / "000002")
    state, damaged = checkpoint.read_latest(tmp_path)
    assert state["number"] == 1
    assert len(damaged) == 1
    assert str(tmp_path / "000002") in damaged[0]
    damage(tmp_path / "000001")
    with pytest.raises(InputError, match="intact"):
        checkpoint.read_latest(tmp_path)


def test_a_damaged_one_is_written_anew_and_a_whole_one_stays(tmp_path):
    checkpoint.write(tmp_path, 1, {"number": 1}, keep=2)
    checkpoint.write(tmp_path, 1, {"number": 100}, keep=2)
    assert checkpoint.read_latest(tmp_path)[0] == {"number": 1}
    truncate(tmp_path / "000001")
    checkpoint.write(tmp_path, 1, {"number": 100}, keep=2)
    assert checkpoint.read_latest(tmp_path)[0] == {"number": 100}


def test_a_write_that_was_cut_off_is_no_checkpoint(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, 1, {"number": 1}, keep=2)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    for place in ("save_file", "flush"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, place, fail)
            with pytest.raises(OSError, match="No space"):
                checkpoint.write(tmp_path, 2, {"number": 2}, keep=1)
        assert checkpoint.read_latest(tmp_path) == ({"number": 1}, [])
    checkpoint.write(tmp_path, 2, {"number": 2}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]


def test_nothing_in_a_checkpoint_is_code(tmp_path):
    path = checkpoint.write(tmp_path, 1, STATE, keep=1)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / checkpoint.MANIFEST).read_text()).keys() == {"bytes", "sha256"}


def test_the_random_numbers_go_on_where_they_were(tmp_path):
    def draw():
        return [torch.rand(()).item(), random.gauss(0, 1), np.random.normal()]

    draw()  # an odd number of normal ones: the second of a pair is kept in the state
    checkpoint.write(tmp_path, 1, {"random": checkpoint.random_state()}, keep=1)
    expected = [draw(), draw()]
    checkpoint.restore_random_state(checkpoint.read_latest(tmp_path)[0]["random"])
    assert [draw(), draw()] == expected
    assert draw() not in expected
