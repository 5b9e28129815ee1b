"""Advantages by hand, and a value function that learns."""

import pytest
import torch

from dpok_cli.engine.advantage import ValueFunction, per_prompt


def test_each_prompt_is_measured_against_itself():
    # "a": mean 2, standard deviation 1; "b": mean 20, standard deviation 10
    rewards = torch.tensor([1.0, 10.0, 3.0, 30.0])
    assert per_prompt(rewards, ["a", "b", "a", "b"]).tolist() == pytest.approx(
        [-1, -1, 1, 1], abs=1e-5
    )


def test_a_prompt_alone_is_measured_against_all():
    # all: mean 3, variance (4 + 1 + 0 + 9 + 0) / 5 = 2.8; "a": mean 1.5, standard deviation 0.5
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0, 3.0])
    advantages = per_prompt(rewards, ["a", "a", "b", "c", "d"])
    assert advantages.tolist() == pytest.approx([-1, 1, 0, 3 / 2.8**0.5, 0], abs=1e-5)


@pytest.mark.parametrize("value", [0.0, -1.7, 0.1, 20.1, 1234.56])
@pytest.mark.parametrize("samples", [1, 2, 3, 10, 24])
def test_equal_rewards_say_nothing(value, samples):
    advantages = per_prompt(torch.full((samples,), value), ["a"] * samples)
    assert advantages.dtype == torch.float32
    assert advantages.tolist() == [0.0] * samples


def test_the_scale_of_a_reward_does_not_matter():
    rewards = torch.tensor([0.1, 0.5, 0.9])
    small, large = (per_prompt(scale * rewards, ["a"] * 3) for scale in (1.0, 1000.0))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (96, 64), (1, 1), (13, 9)])
def test_a_value_for_any_latent_size(size):
    value = ValueFunction(4, prompt_width=6, width=8)
    out = value(torch.randn(3, 4, *size), torch.randn(3, 7, 6), torch.tensor([999, 500, 1]))
    assert out.shape == (3,)
    assert out.dtype == torch.float32
    assert out.unique().numel() == 3


def test_half_precision_embeddings_are_taken():
    value = ValueFunction(4, prompt_width=6, width=8)
    embeds = torch.randn(2, 7, 6).half()
    arguments = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    torch.testing.assert_close(
        value(arguments[0], embeds, arguments[1]), value(arguments[0], embeds.float(), arguments[1])
    )


def test_the_value_function_learns_from_latent_prompt_and_time():
    torch.manual_seed(0)
    value = ValueFunction(4, prompt_width=6, width=32)
    optimizer = torch.optim.Adam(value.parameters(), lr=3e-3)
    shift = torch.randn(64, 1, 1, 1)
    latents = 0.1 * torch.randn(64, 4, 8, 8) + shift
    which = torch.arange(64) % 2
    embeds = torch.randn(2, 5, 6)[which]
    timesteps = torch.where(torch.arange(64) < 32, 900, 100)
    target = shift.flatten() + 2.0 * which + (timesteps > 500)
    for _ in range(150):
        error = ((value(latents, embeds, timesteps) - target) ** 2).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.05 * target.var()
