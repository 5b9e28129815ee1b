import pytest
import torch

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.check import check
from support.rewards import Brightest


class Red(RewardModel):
    """The mean of the red channel."""

    name = "red"
    batch_size = 3
    differentiable = True

    def score_batch(self, images, prompts):
        return images[:, 0].mean((1, 2))


def test_the_measurements():
    batches = []

    class Counted(Red):
        def score_batch(self, images, prompts):
            batches.append((tuple(images.shape), prompts))
            return super().score_batch(images, prompts)

    result = check(Counted())
    assert result.scores == pytest.approx((0.5, 0.5), abs=0.01)
    assert result.scores[0] != result.scores[1]
    assert result.batch_size == 3
    assert result.images_per_second > 0
    assert 10**7 < result.peak_memory < 10**12  # bytes on every system
    two = ((2, 3, 256, 256), ["a cat", "a dog"])
    assert batches == [two, two, ((3, 3, 256, 256), ["a cat", "a dog", "a cat"])]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            lambda self, images, prompts: images.detach().mean((1, 2, 3)),
            "but its scores have no gradient",
        ),
        (
            lambda self, images, prompts: torch.zeros(len(images), requires_grad=True) * 1,
            "its gradients for the images are missing or not finite",
        ),
        (
            lambda self, images, prompts: (images[:, 0, 0, 0] * 0).sqrt(),
            "its gradients for the images are missing or not finite",
        ),
    ],
)
def test_a_reward_that_declares_gradients_must_have_them(monkeypatch, score, message):
    monkeypatch.setattr(Red, "score_batch", score)
    with pytest.raises(RewardError, match=f"^red: .*{message}$"):
        check(Red())
    monkeypatch.setattr(Red, "differentiable", False)
    assert check(Red()).batch_size == 3


def test_a_load_error_is_reported(monkeypatch):
    monkeypatch.setattr(Red, "load", lambda self: [][0])
    with pytest.raises(RewardError, match=r"^red: could not be loaded: IndexError"):
        check(Red())


def test_a_reward_that_compares_gets_images_of_one_prompt():
    reward = Brightest()
    result = check(reward)
    # The noise is a little brighter than the gradient.
    assert result.scores == (0.0, 1.0)
    assert reward.groups == [("a cat", 2), ("a cat", 4)]
    assert result.batch_size == 4
