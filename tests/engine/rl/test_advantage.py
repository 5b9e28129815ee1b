"""Advantages by hand, and a value function that learns."""

from dataclasses import replace

import pytest
import torch

from dpok_cli.engine.rl.advantage import (
    MixedAdvantage,
    PromptAdvantage,
    RewardAdvantage,
    residuals,
)
from dpok_cli.engine.rl.value import ValueFunction
from dpok_cli.rewards.combined import Scores, WeightedReward


def total(values):
    return Scores(torch.tensor(values), {})


def per_prompt(rewards, prompts, starts):
    """Advantages of a first round."""
    return PromptAdvantage().of_round(Scores(rewards, {}), prompts, starts)[:, 0]


def test_each_prompt_is_measured_against_itself():
    # "a": mean 2, standard deviation 1; "b": mean 20, standard deviation 10
    rewards = torch.tensor([1.0, 10.0, 3.0, 30.0])
    assert per_prompt(rewards, ["a", "b", "a", "b"], range(4)).tolist() == pytest.approx(
        [-1, -1, 1, 1], abs=1e-5
    )


def test_a_prompt_alone_is_measured_against_all():
    # all: mean 3, variance (4 + 1 + 0 + 9 + 0) / 5 = 2.8; "a": mean 1.5, standard deviation 0.5
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0, 3.0])
    advantages = per_prompt(rewards, ["a", "a", "b", "c", "d"], range(5))
    assert advantages.tolist() == pytest.approx([-1, 1, 0, 3 / 2.8**0.5, 0], abs=1e-5)


def test_what_x_t_brings_is_left_out():
    # From 7: mean 2, gaps -1, 1; from 8: mean 20, gaps -3, 3; groups -9 and 9 from the mean of all.
    # F = (4 x 81 / 1) / (20 / 2) = 32.4, so 1 / 32.4 of a group's 9 is left: 0.2778
    gaps = residuals(torch.tensor([1.0, 17.0, 3.0, 23.0]), torch.tensor([7, 8, 7, 8]))
    left = 9 / 32.4
    assert gaps.tolist() == pytest.approx([-1 - left, -3 + left, 1 - left, 3 + left], rel=1e-5)


def test_groups_that_differ_by_chance_are_one():
    # Group means 3 and 5, each from gaps of 2: F = (4 x 1 / 1) / (16 / 2) = 0.5
    gaps = residuals(torch.tensor([1.0, 5.0, 3.0, 7.0]), torch.tensor([7, 7, 8, 8]))
    assert gaps.tolist() == [-3.0, 1.0, -1.0, 3.0]


@pytest.mark.parametrize("starts", [[1, 2, 3], [4, 4, 4]])
def test_without_groups_to_compare_the_mean_is_that_of_all(starts):
    gaps = residuals(torch.tensor([1.0, 2.0, 6.0]), torch.tensor(starts))
    assert gaps.tolist() == [-2.0, -1.0, 3.0]


def test_each_prompt_has_its_own_groups():
    rewards = torch.tensor([1.0, 17.0, 3.0, 23.0, 4.0, 6.0])
    advantages = per_prompt(rewards, ["a"] * 4 + ["b"] * 2, [7, 8, 7, 8, 7, 8])
    gaps = residuals(rewards[:4], torch.tensor([7, 8, 7, 8]))
    scale = gaps.square().mean().sqrt()
    assert advantages.tolist() == pytest.approx([*(gaps / scale).tolist(), -1, 1], abs=1e-5)


def test_the_expected_is_nearest_the_truth_where_x_t_matters_and_where_it_does_not():
    """Of the rewards' variance, at most 0.04 above the better of both plain means."""
    random = torch.Generator().manual_seed(0)
    starts = torch.arange(6).repeat_interleave(4)
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        errors = torch.zeros(3)
        for _ in range(400):
            truth = share**0.5 * torch.randn(6, generator=random)[starts]
            rewards = truth + (1 - share) ** 0.5 * torch.randn(24, generator=random)
            group = rewards.view(6, 4).mean(1)[starts]
            guesses = (rewards.mean(), group, rewards - residuals(rewards, starts))
            errors += torch.stack([(guess - truth).square().mean() for guess in guesses])
        errors /= 400
        assert errors[2] <= min(errors[0], errors[1]) + 0.04


@pytest.mark.parametrize("value", [0.0, -1.7, 0.1, 20.1, 1234.56])
@pytest.mark.parametrize("samples", [1, 2, 3, 10, 24])
def test_equal_rewards_say_nothing(value, samples):
    advantages = per_prompt(torch.full((samples,), value), ["a"] * samples, range(samples))
    assert advantages.dtype == torch.float32
    assert advantages.tolist() == [0.0] * samples


def test_the_unit_is_the_spread_of_all_rounds_so_far():
    advantages = PromptAdvantage()
    first = advantages.of_round(total([1.0, 7.0]), ["a", "a"], range(2))[:, 0]
    assert first.tolist() == pytest.approx([-1, 1], abs=1e-5)  # gaps of 3
    # gaps of 1: sum of squares 9 + 9 + 1 + 1 of 4 samples, so a unit of 5^0.5
    later = advantages.of_round(total([4.0, 6.0]), ["a", "a"], range(2))[:, 0]
    assert later.tolist() == pytest.approx([-(5**-0.5), 5**-0.5], abs=1e-5)
    # another prompt has a unit of its own
    other = advantages.of_round(total([4.0, 6.0]), ["b", "b"], range(2))[:, 0]
    assert other.tolist() == pytest.approx([-1, 1], abs=1e-5)
    # six rounds of nothing to tell apart lower the unit by no more than their share
    for _ in range(6):
        equal = advantages.of_round(total([5.0, 5.0]), ["a", "a"], range(2))[:, 0]
        assert equal.tolist() == [0, 0]
    last = advantages.of_round(total([4.0, 6.0]), ["a", "a"], range(2))[:, 0]
    assert last.tolist() == pytest.approx([-((22 / 18) ** -0.5), (22 / 18) ** -0.5], abs=1e-5)


def test_the_image_is_compared_with_its_prompt_and_the_actions_with_their_x_t():
    """Two x_T that decide all: 0 and 1 above, or below, whatever the noise."""
    rewards = total([1.0, 1.0, 3.0, 3.0])
    both = PromptAdvantage().of_round(rewards, ["a"] * 4, [7, 7, 8, 8])
    assert both[:, 0].tolist() == [0.0] * 4
    assert both[:, 1].tolist() == pytest.approx([-1, -1, 1, 1], abs=1e-5)
    plain = RewardAdvantage().of_round(rewards, ["a"] * 4, [7, 7, 8, 8])
    assert plain.tolist() == [[1.0, 1.0], [1.0, 1.0], [3.0, 3.0], [3.0, 3.0]]


def test_the_units_of_actions_and_images_come_back():
    one, other = PromptAdvantage(), PromptAdvantage()
    one.of_round(total([0.0, 2.0, 3.0, 9.0]), ["a"] * 4, [7, 7, 8, 8])
    other.load_state_dict(one.state_dict())
    again = (total([1.0, 4.0]), ["a", "a"], [1, 2])
    assert one.of_round(*again).tolist() == other.of_round(*again).tolist()
    assert other.of_round(*again)[0, 0].abs() < 0.99  # the first round's residuals count


def test_mixed_advantages_are_a_mean_in_units_of_each_reward():
    """One from 0 to 2, one from 0 to 200 of which less is better, counted three to one."""
    raw = {
        "small": torch.tensor([0.0, 2.0, 2.0, 0.0]),
        "large": torch.tensor([0.0, 0.0, 200.0, 200.0]),
    }
    mixed = MixedAdvantage({"small": 3.0, "large": -1.0})
    scores = Scores(3 * raw["small"] - raw["large"], raw)
    advantages = mixed.of_round(scores, ["a"] * 4, range(4))
    # (3 x -1 + 1) / 4, (3 + 1) / 4, (3 - 1) / 4, (-3 - 1) / 4
    assert advantages[:, 0].tolist() == pytest.approx([-0.5, 1, 0.5, -1], abs=1e-5)
    assert advantages[:, 1].tolist() == pytest.approx([-0.5, 1, 0.5, -1], abs=1e-5)
    # the sum follows the large one alone
    assert per_prompt(scores.total, ["a"] * 4, range(4)).tolist() == pytest.approx(
        [1, 1, -1, -1], abs=0.05
    )


def test_the_units_of_mixed_advantages_come_back():
    one, other = MixedAdvantage({"x": 1.0, "y": 1.0}), MixedAdvantage({"x": 1.0, "y": 1.0})

    def scores(*values):
        return Scores(torch.zeros(2), {"x": torch.tensor(values), "y": torch.tensor([0.0, 1.0])})

    one.of_round(scores(0.0, 8.0), ["a", "a"], range(2))
    other.load_state_dict(one.state_dict())
    again = scores(0.0, 4.0), ["a", "a"], range(2)
    # x: residuals of 4, 4, 2 and 2, a unit of 10^0.5; y: residuals of a half, its unit
    right = pytest.approx((2 / 10**0.5 + 1) / 2, abs=1e-5)
    assert one.of_round(*again)[1, 0].item() == right
    assert other.of_round(*again)[1, 0].item() == right


@pytest.mark.parametrize(("mix", "like_green"), [("rewards", False), ("advantages", True)])
def test_the_weight_decides_between_mixed_advantages(
    rl_loop, model, make_config, green, mix, like_green
):
    """The other reward has a tenth of the weight, the opposite sign and far larger numbers."""
    (against,) = (reward for reward, _ in green.rewards.values())
    against = type("Against", (type(against),), {"name": "against"})()
    plain = against.score_batch
    against.score_batch = lambda images, prompts: -1000 * plain(images, prompts)
    reward = WeightedReward([*green.rewards.values(), (against, 0.1)])
    config = make_config(advantage="prompt", mix=mix, timestep_fraction=1.0, advantage_clip=0.0)
    loop = rl_loop(config, model, reward)
    loop.advance(1)
    seen = loop.buffer.examples
    alone = rl_loop(replace(config, mix="rewards"), model, green)
    alone.advance(1)
    factor = 0.9 / 1.1 if like_green else -1.0
    torch.testing.assert_close(
        seen.advantage, factor * alone.buffer.examples.advantage, rtol=1e-2, atol=1e-4
    )


def test_the_scale_of_a_reward_does_not_matter():
    rewards = torch.tensor([0.1, 0.5, 0.9])
    small, large = (per_prompt(scale * rewards, ["a"] * 3, range(3)) for scale in (1.0, 1000.0))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (96, 64), (1, 1), (13, 9)])
def test_a_value_for_any_latent_size(size):
    value = ValueFunction(4, prompt_width=6, width=8)
    out = value(torch.randn(3, 4, *size), torch.randn(3, 6), torch.tensor([999, 500, 1]))
    assert out.shape == (3,)
    assert out.dtype == torch.float32
    assert out.unique().numel() == 3


def test_the_value_function_learns_from_latent_prompt_and_time():
    torch.manual_seed(0)
    value = ValueFunction(4, prompt_width=6, width=32)
    optimizer = torch.optim.Adam(value.parameters(), lr=3e-3)
    shift = torch.randn(64, 1, 1, 1)
    latents = 0.1 * torch.randn(64, 4, 8, 8) + shift
    which = torch.arange(64) % 2
    prompts = torch.randn(2, 6)[which]
    timesteps = torch.where(torch.arange(64) < 32, 900, 100)
    target = shift.flatten() + 2.0 * which + (timesteps > 500)
    for _ in range(150):
        error = ((value(latents, prompts, timesteps) - target) ** 2).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.05 * target.var()


@pytest.mark.parametrize("part", ["latent", "prompt", "time"])
def test_the_value_depends_on_each_of_them(part):
    value = ValueFunction(4, prompt_width=6, width=8)
    usual = {
        "latent": torch.zeros(1, 4, 8, 8),
        "prompt": torch.zeros(1, 6),
        "time": torch.tensor([500]),
    }
    other = usual | {part: usual[part] + 1}
    assert value(*usual.values()).item() != value(*other.values()).item()
