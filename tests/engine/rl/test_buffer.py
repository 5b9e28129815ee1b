"""The replay buffer by hand."""

from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from torch import Tensor

from dpok_cli.engine.rl.buffer import Buffer
from dpok_cli.engine.rl.rollout import Batch


@dataclass(frozen=True)
class Numbers(Batch):
    number: Tensor


def filled(*rounds, size=0):
    buffer = Buffer(size)
    for numbers in rounds:
        buffer.add(Numbers(torch.tensor(numbers)))
    return buffer


def test_the_newest_come_first_and_the_oldest_go():
    buffer = filled([1, 2], [3, 4], [5, 6], size=5)
    assert buffer.examples.number.tolist() == [5, 6, 3, 4, 1]
    assert buffer.fresh == 2
    assert filled([1, 2], [3, 4]).examples.number.tolist() == [3, 4]
    assert filled([1], [2, 3, 4], size=2).examples.number.tolist() == [2, 3, 4]


def test_every_row_is_used_once_before_any_is_repeated():
    buffer = filled(list(range(7)))
    batches = [batch.tolist() for batch in islice(buffer.minibatches(3, seed=1), 6)]
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1]
    for turn in (batches[:3], batches[3:]):
        assert sorted(row for batch in turn for row in batch) == list(range(7))
    assert batches[:3] != batches[3:]


def test_the_order_is_by_the_seed_alone():
    def order(seed, of_torch):
        torch.manual_seed(of_torch)
        return next(filled(list(range(50))).minibatches(50, seed)).tolist()

    assert order(1, 1) == order(1, 2) != order(2, 1)
    assert order(1, 1) != list(range(50))


@pytest.mark.parametrize("size", [0, 9])
def test_its_state_comes_back(size):
    one, other = filled([1, 2], [3, 4], size=size), Buffer(size)
    other.load_state_dict(one.state_dict(), Numbers, torch.device("cpu"))
    assert other.fresh == 2
    for buffer in (one, other):
        buffer.add(Numbers(torch.tensor([5])))
    assert one.examples.number.tolist() == other.examples.number.tolist()


@dataclass(frozen=True)
class Pairs(Batch):
    first: Numbers
    second: Numbers


def test_batches_of_batches_are_cut_joined_and_stored_as_one():
    def pairs(*numbers):
        return Pairs(Numbers(torch.tensor(numbers)), Numbers(-torch.tensor(numbers)))

    one, other = Buffer(5), Buffer(5)
    one.add(pairs(1, 2))
    one.add(pairs(3, 4))
    other.load_state_dict(one.state_dict(), Pairs, torch.device("cpu"))
    for buffer in (one, other):
        assert len(buffer) == 4
        taken = buffer[torch.tensor([3, 0])]
        assert taken.first.number.tolist() == [2, 3]
        assert taken.second.number.tolist() == [-2, -3]
