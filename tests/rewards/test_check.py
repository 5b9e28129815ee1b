import pytest
import torch

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.check import check


class Red(RewardModel):
    """The mean of the red channel."""

    name = "red"
    batch_size = 3
    differentiable = True

    def score_batch(self, images, prompts):
        return images[:, 0].mean((1, 2))


def test_what_is_measured():
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
    assert 10**7 < result.peak_memory < 10**12  # bytes, whatever the system counts in
    two = ((2, 3, 256, 256), ["a cat", "a dog"])
    assert batches == [two, two, ((3, 3, 256, 256), ["a cat", "a dog", "a cat"])]


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (lambda self, images, prompts: images.detach().mean((1, 2, 3)), "but its scores are not"),
        (
            lambda self, images, prompts: torch.zeros(len(images), requires_grad=True) * 1,
            "gives no gradients, or not finite ones, to the images",
        ),
        (
            lambda self, images, prompts: (images[:, 0, 0, 0] * 0).sqrt(),
            "gives no gradients, or not finite ones, to the images",
        ),
    ],
)
def test_gradients_that_are_promised_must_come(monkeypatch, score, told):
    monkeypatch.setattr(Red, "score_batch", score)
    with pytest.raises(RewardError, match=f"^red: .*{told}$"):
        check(Red())
    monkeypatch.setattr(Red, "differentiable", False)
    assert check(Red()).batch_size == 3


def test_a_reward_that_cannot_be_loaded_is_told(monkeypatch):
    monkeypatch.setattr(Red, "load", lambda self: [][0])
    with pytest.raises(RewardError, match=r"^red: could not be loaded: IndexError"):
        check(Red())
