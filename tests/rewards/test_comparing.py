import pytest
import torch

from dpok_cli.errors import InputError
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.comparing import PER_REQUEST, refuse_comparing
from support.rewards import Brightest, Brightness, Redness

ALL = WeightedReward([(Redness(), 2.0), (Brightest(), -3.0), (Brightest(), 1.0)])
COMPARING, ALONE = (WeightedReward([(each(), 1.0)]) for each in (Brightest, Brightness))


def test_which_rewards_compare_and_what_the_others_score():
    assert ALL.comparing == ("brightest", "brightest-2")
    images = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    alone = ALL.score_alone(images, ["a", "a", "b"])
    expected = ALL.score(images, ["a", "a", "b"])
    assert list(alone) == ["redness"]
    assert torch.equal(alone["redness"], expected.raw["redness"])
    assert torch.equal(ALL.combine(alone).total, 2 * alone["redness"])
    assert ALONE.score_alone(images, ["a"] * 3)["brightness"].shape == (3,)
    assert COMPARING.score_alone(images, ["a"] * 3) == {}


def test_where_images_come_apart_they_cannot_be_compared():
    with pytest.raises(InputError) as caught:
        refuse_comparing(ALL, PER_REQUEST)
    assert str(caught.value) == (
        "Reward 'brightest' compares the images of a prompt with each other, and cannot be used"
        " here: the images of a prompt may arrive in several requests."
    )
    refuse_comparing(ALONE, PER_REQUEST)
