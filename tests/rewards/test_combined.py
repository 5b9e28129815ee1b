import pytest
import torch

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward


class Brightness(RewardModel):
    name = "brightness"
    differentiable = True

    def score_batch(self, images, prompts):
        return images.mean((1, 2, 3))


class Kilobytes(RewardModel):
    name = "kilobytes"
    higher_is_better = False

    def score_batch(self, images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])


IMAGES = torch.tensor([0.25, 0.5]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
PROMPTS = ["abc", "abcdefgh"]


def test_the_sum_is_weighted_and_signed_and_the_raw_scores_are_kept():
    reward = WeightedReward([(Brightness(), 2.0), (Kilobytes(), 0.5)])
    scores = reward.score(IMAGES, PROMPTS)
    assert reward.names == ("brightness", "kilobytes")
    assert scores.total.tolist() == [2 * 0.25 - 0.5 * 3, 2 * 0.5 - 0.5 * 8]
    assert scores.total.dtype == torch.float32
    assert {name: raw.tolist() for name, raw in scores.raw.items()} == {
        "brightness": [0.25, 0.5],
        "kilobytes": [3.0, 8.0],
    }


def test_a_negative_weight_flips_the_sign():
    scores = WeightedReward([(Kilobytes(), -1.0)]).score(IMAGES, PROMPTS)
    assert scores.total.tolist() == [3.0, 8.0]


def test_a_second_instance_of_a_reward_has_a_number():
    reward = WeightedReward([(Brightness(), 1.0), (Brightness(), 2.0), (Brightness(), 4.0)])
    assert reward.names == ("brightness", "brightness-2", "brightness-3")
    scores = reward.score(IMAGES, PROMPTS)
    assert list(scores.raw) == list(reward.names)
    assert scores.total.tolist() == [7 * 0.25, 7 * 0.5]


def test_gradients_pass_through_the_weights():
    images = IMAGES.clone().requires_grad_()
    WeightedReward([(Brightness(), 3.0)]).score(images, PROMPTS, grad=True).total.sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 3 / 48))


def test_the_part_that_fails_is_named():
    with pytest.raises(RewardError, match=r"^kilobytes: is not differentiable"):
        WeightedReward([(Brightness(), 1.0), (Kilobytes(), 1.0)]).score(IMAGES, PROMPTS, grad=True)
