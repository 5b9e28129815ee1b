from dataclasses import dataclass

import pytest

from dpok_cli.rewards import manager
from dpok_cli.rewards.base import RewardModel


class Sharpness(RewardModel):
    """How sharp the image is.

    Measured with [brackets].
    """

    name = "sharpness"
    higher_is_better = False
    range = (0.0, 2.5)

    @dataclass(frozen=True)
    class Options:
        """``size`` in pixels; ``kernel`` is the filter's name."""

        kernel: str
        size: int = 3

    def score_batch(self, images, prompts):
        raise NotImplementedError


@pytest.fixture
def found(monkeypatch):
    registry = manager.Registry(
        rewards={"sharpness": manager.Entry(Sharpness, "dpok-sharp", "1.2")},
        failures={"dpok-broken (broken.plugin)": "ImportError: no [module]"},
        clashes={"twice": ["one", "two"]},
    )
    monkeypatch.setattr(manager, "registry", lambda: registry)


@pytest.mark.usefixtures("found")
def test_list(dpok):
    code, out, err = dpok("rewards")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["reward", "package", "range", "what", "it", "is"],
        ["sharpness", "dpok-sharp", "1.2", "0", "to", "2.5", "How", "sharp", "the", "image", "is."],
    ]
    assert err.splitlines() == [
        "Left out: dpok-broken (broken.plugin): ImportError: no [module]",
        "Left out: 'twice', which one and two both claim",
    ]


@pytest.mark.usefixtures("found")
def test_show(dpok):
    code, out, err = dpok("rewards", "show", "sharpness")
    assert (code, err) == (0, "")
    for line in (
        "Measured with [brackets].",
        "Range: 0 to 2.5; lower is better.",
        "Option kernel (str, must be given)",
        "Option size (int, default 3)",
        "``size`` in pixels; ``kernel`` is the filter's name.",
        "Use it with: --reward sharpness:kernel=...",
    ):
        assert line in out.splitlines()


def test_first_party_rewards_are_listed(dpok):
    names = [line.split()[0] for line in dpok("rewards").out.splitlines() if line[0] != " "]
    assert {"image-reward", "judge"} <= set(names)
