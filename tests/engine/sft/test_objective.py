"""The losses of supervised fine-tuning against values worked out by hand."""

import pytest
import torch

from dpok_cli.engine.sft.objective import denoising_error, reward_weights, sft_loss


def test_weights_by_hand():
    rewards = torch.tensor([1.5, -0.5, -3.0, 0.0])
    assert reward_weights(rewards, 2.0, "kl-d").tolist() == [3.5, 1.5, 0.0, 2.0]
    assert reward_weights(rewards, 2.0, "kl-o").tolist() == [1.5, 0.0, 0.0, 0.0]
    for form in ("kl-d", "kl-o"):  # plain reward-weighted fine-tuning
        assert reward_weights(rewards, 0.0, form).tolist() == [1.5, 0.0, 0.0, 0.0]


def test_denoising_error_by_hand():
    output = torch.tensor([1.0, 3.0, 0.0, -1.0]).view(2, 1, 1, 2)
    target = torch.tensor([0.0, 1.0, 0.5, 1.0]).view(2, 1, 1, 2)
    # (1 + 4) / 2 and (0.25 + 4) / 2
    assert denoising_error(output, target).tolist() == [2.5, 2.125]


def two_images(gamma, kl_form):
    """Rewards 1.5 and -0.5, errors 0.2 and 0.6, KLs 0.01 and 0.05."""
    rewards = torch.tensor([1.5, -0.5])
    error = torch.tensor([0.2, 0.6], requires_grad=True)
    kl = torch.tensor([0.01, 0.05], requires_grad=True)
    weight = reward_weights(rewards, gamma, kl_form).requires_grad_()
    loss = sft_loss(weight, error, kl, gamma=gamma, kl_form=kl_form)
    slopes = torch.autograd.grad(loss, (error, kl, weight), allow_unused=True)
    return loss.item(), *slopes


def test_kl_d_by_hand():
    loss, error, kl, weight = two_images(2.0, "kl-d")
    # (3.5 * 0.2 + 1.5 * 0.6) / 2
    assert loss == pytest.approx(0.8, abs=1e-6)
    assert error.tolist() == pytest.approx([1.75, 0.75], abs=1e-6)
    assert kl is None
    assert weight is None


def test_kl_o_by_hand():
    loss, error, kl, weight = two_images(2.0, "kl-o")
    # (1.5 * 0.2 + 0 * 0.6) / 2 + 2 * (0.01 + 0.05) / 2
    assert loss == pytest.approx(0.15 + 0.06, abs=1e-6)
    assert error.tolist() == pytest.approx([0.75, 0.0], abs=1e-6)
    assert kl.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert weight is None


def test_without_gamma_both_forms_are_one():
    plain, shifted = two_images(0.0, "kl-d"), two_images(0.0, "kl-o")
    assert plain[0] == shifted[0] == pytest.approx(0.15, abs=1e-6)
    assert plain[1].tolist() == shifted[1].tolist() == pytest.approx([0.75, 0.0])
