from dataclasses import dataclass

import pytest
import torch

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from support.rewards import Brightest


class Red(RewardModel):
    """The mean of the red channel, plus the prompt's length."""

    name = "red"
    batch_size = 2
    differentiable = True

    def __init__(self, options=None, device="cpu"):
        super().__init__(options, device)
        self.loads = 0
        self.batches = []

    def load(self):
        self.loads += 1

    def score_batch(self, images, prompts):
        self.batches.append(prompts)
        assert images.dtype == torch.float32
        return images[:, 0].mean((1, 2)) + torch.tensor([float(len(p)) for p in prompts])


def returns(value):
    """A reward that returns ``value``, or raises it."""

    class Odd(RewardModel):
        name = "odd"

        def score_batch(self, images, prompts):
            if isinstance(value, BaseException):
                raise value
            return value

    return Odd()


def plain(count=3):
    """Images with constant pixels 0, 0.1, 0.2 and so on."""
    return (torch.arange(count) / 10).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)


def test_scores_in_chunks_in_order_and_loads_once():
    reward = Red()
    assert reward.loads == 0
    scores = reward.score(plain(5), ["", "a", "bb", "ccc", "dddd"])
    torch.testing.assert_close(scores, torch.tensor([0.0, 1.1, 2.2, 3.3, 4.4]))
    assert reward.batches == [["", "a"], ["bb", "ccc"], ["dddd"]]
    reward.score(plain(1), [""])
    assert reward.loads == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_and_scores_of_any_float_become_float32(dtype):
    scores = Red().score(plain().to(dtype), ["", "", ""])
    assert scores.dtype == torch.float32
    odd = returns(torch.tensor([1.5, 2.5, -3.0], dtype=dtype)).score(plain(), ["", "", ""])
    assert odd.dtype == torch.float32
    assert odd.tolist() == [1.5, 2.5, -3.0]


def test_gradients_flow_only_if_asked_for():
    images = plain().clone().requires_grad_()
    assert not Red().score(images, ["", "", ""]).requires_grad
    Red().score(images, ["", "", ""], grad=True).sum().backward()
    torch.testing.assert_close(images.grad[:, 0], torch.full((3, 4, 5), 1 / 20))
    assert images.grad[:, 1:].abs().max() == 0


def test_gradients_of_a_non_differentiable_reward_are_refused():
    with pytest.raises(RewardError, match=r"^odd: is not differentiable$"):
        returns(torch.zeros(3)).score(plain(), ["", "", ""], grad=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([0.0, float("nan"), 0.0]), "odd: returned nan for 'b'"),
        (torch.tensor([0.0, 0.0, float("-inf")]), "odd: returned -inf for 'c'"),
        (torch.tensor([0.0, 1e300, 0.0], dtype=torch.float64), "odd: returned inf for 'b'"),
        (torch.zeros(2), "odd: returned float32 (2,), not float (3,)"),
        (torch.zeros(3, 1), "odd: returned float32 (3, 1), not float (3,)"),
        (torch.tensor(1.0), "odd: returned float32 (), not float (3,)"),
        (torch.zeros(3, dtype=torch.int64), "odd: returned int64 (3,), not float (3,)"),
        ([0.0, 0.0, 0.0], "odd: returned list, not a tensor"),
        (None, "odd: returned NoneType, not a tensor"),
        (ValueError("too\n  dark"), "odd: ValueError: too dark"),
        (RewardError("too dark"), "odd: too dark"),
        (RewardError("odd: too dark"), "odd: too dark"),
    ],
)
def test_an_invalid_score_is_an_error_with_the_rewards_name(value, message):
    with pytest.raises(RewardError) as caught:
        returns(value).score(plain(), ["a", "b", "c"])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.zeros(3, 4, 5), ["a"], "red: images must be float (B, 3, H, W), not float32 (3,"),
        (torch.zeros(1, 1, 4, 5), ["a"], "(B, 3, H, W), not float32 (1, 1, 4, 5)"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), ["a"], "not uint8 (1, 3, 4, 5)"),
        (plain(2), ["a"], "red: got 2 images but 1 prompts"),
        (plain(0), [], "red: got 0 images but 0 prompts"),
    ],
)
def test_invalid_images_and_prompts(images, prompts, message):
    with pytest.raises(RewardError) as caught:
        Red().score(images, prompts)
    assert message in str(caught.value)


def test_a_failed_load_is_named_and_retried():
    class Flaky(Red):
        def load(self):
            super().load()
            if self.loads == 1:
                raise OSError("no such file")

    reward = Flaky()
    with pytest.raises(RewardError, match=r"^red: could not be loaded: OSError: no such file$"):
        reward.score(plain(1), [""])
    assert reward.score(plain(1), [""]).tolist() == [0.0]
    assert reward.loads == 2


def test_options_have_their_defaults():
    class Scaled(Red):
        @dataclass(frozen=True)
        class Options:
            scale: float = 2.0

    assert Scaled().options == Scaled.Options(2.0)
    assert Scaled(Scaled.Options(3.0)).options.scale == 3.0
    assert Red().options == RewardModel.Options()


class Normalising(RewardModel):
    """Normalises its images and empties its prompts in place, and keeps what it returns."""

    name = "normalising"
    differentiable = True

    def score_batch(self, images, prompts):
        images.sub_(0.5).div_(0.5)
        prompts.clear()
        self.kept = images.mean(dim=(1, 2, 3))
        return self.kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_plugin_changes_in_place_is_its_own_copy(dtype):
    images, prompts = plain().to(dtype).contiguous(), ["a", "b", "c"]
    before = images.clone()
    reward = Normalising()
    scores = reward.score(images, prompts)
    assert scores.tolist() == pytest.approx([-1.0, -0.8, -0.6])
    assert torch.equal(images, before)
    assert prompts == ["a", "b", "c"]
    reward.kept.fill_(7.0)
    assert scores.tolist() == pytest.approx([-1.0, -0.8, -0.6])


def test_gradients_flow_through_the_copy():
    images = plain().contiguous().requires_grad_()
    Normalising().score(images, ["a", "b", "c"], grad=True).sum().backward()
    assert images.grad is not None
    assert images.grad.unique().tolist() == pytest.approx([2 / 60])


def test_a_plugin_that_exits_is_an_error_in_its_name():
    with pytest.raises(RewardError, match="odd: SystemExit: 3"):
        returns(SystemExit(3)).score(plain(), ["a", "b", "c"])
    with pytest.raises(RewardError, match="odd: GeneratorExit: gone"):
        returns(GeneratorExit("gone")).score(plain(), ["a", "b", "c"])
    with pytest.raises(KeyboardInterrupt):  # the user's, not the plugin's
        returns(KeyboardInterrupt()).score(plain(), ["a", "b", "c"])


# ------------------------------------------------------------------------------------------ groups


def test_images_of_one_prompt_are_compared_whatever_stands_between_them():
    reward = Brightest()
    scores = reward.score(plain(6), ["a", "b", "a", "c", "a", "b"])
    assert scores.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert reward.groups == [("a", 3), ("b", 2), ("c", 1)]  # though batch_size is 2
    assert reward.score(plain(2).flip(0), ["a", "a"]).tolist() == [1.0, 0.0]
    assert reward.compares
    assert not Red().compares


def test_gradients_flow_within_groups():
    class Contrast(RewardModel):
        name = "contrast"
        differentiable = True

        def score_group(self, images, prompt):
            light = images.mean((1, 2, 3))
            return light - light.mean()

    images = plain(3).clone().requires_grad_()
    scores = Contrast().score(images, ["a", "b", "a"], grad=True)
    assert scores.tolist() == pytest.approx([-0.1, 0.0, 0.1])
    scores[0].backward()
    # The score of the first is half its own light less half that of the third, of 60 pixels each.
    assert images.grad[:, 0, 0, 0].tolist() == pytest.approx([0.5 / 60, 0.0, -0.5 / 60])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([0.0, float("nan")]), "grouped: returned nan for 'b'"),
        (torch.zeros(3), "grouped: returned float32 (3,), not float (2,)"),
        (torch.zeros(2, dtype=torch.int64), "grouped: returned int64 (2,), not float (2,)"),
        ([0.0, 0.0], "grouped: returned list, not a tensor"),
        (ValueError("too dark"), "grouped: ValueError: too dark"),
    ],
)
def test_the_scores_of_each_group_are_checked(value, message):
    class Grouped(RewardModel):
        name = "grouped"

        def score_group(self, images, prompt):
            if prompt == "a":
                return images.mean((1, 2, 3))
            if isinstance(value, BaseException):
                raise value
            return value

    with pytest.raises(RewardError) as caught:
        Grouped().score(plain(3), ["a", "b", "b"])
    assert str(caught.value) == message


def test_what_a_group_changes_in_place_is_its_own_copy():
    class Emptying(RewardModel):
        name = "emptying"

        def score_group(self, images, prompt):
            return images.zero_().mean((1, 2, 3))

    images = plain(2).contiguous()
    assert Emptying().score(images, ["a", "a"]).tolist() == [0.0, 0.0]
    assert torch.equal(images, plain(2))
