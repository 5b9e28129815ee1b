"""What a plugin raises becomes an error of ours, whatever its class."""

import asyncio

import pytest

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.guard import plugin_code
from dpok_cli.rewards.manager import local_files

ANYTHING = [ValueError, SystemExit, GeneratorExit, StopIteration, asyncio.CancelledError]


@pytest.mark.parametrize("raised", ANYTHING)
def test_anything_that_is_raised_becomes_our_error(raised):
    with (
        pytest.raises(RewardError, match=f"it raised {raised.__name__}") as caught,
        plugin_code(lambda error: RewardError(f"it raised {type(error).__name__}")),
    ):
        raise raised("gone")
    assert isinstance(caught.value.__cause__, raised)


def test_an_interrupt_is_the_users():
    with pytest.raises(KeyboardInterrupt), plugin_code(RewardError):
        raise KeyboardInterrupt


class Reads(RewardModel):
    def __init__(self, found=(), raises=None):
        super().__init__()
        self.found, self.raises = found, raises

    def files(self, local_only=False):
        assert local_only
        if self.raises:
            raise self.raises("gone")
        return self.found


def test_files_are_local_if_all_are_there(tmp_path):
    there = tmp_path / "weights"
    there.touch()
    assert local_files(lambda: Reads((there,))) == (there,)
    assert local_files(Reads) == ()
    assert local_files(lambda: Reads((there, tmp_path / "others"))) is None


@pytest.mark.parametrize("raised", ANYTHING)
def test_files_that_cannot_be_looked_for_are_not_local(raised):
    assert local_files(lambda: Reads(raises=raised)) is None


def test_an_interrupt_of_the_search_is_the_users():
    with pytest.raises(KeyboardInterrupt):
        local_files(lambda: Reads(raises=KeyboardInterrupt))
