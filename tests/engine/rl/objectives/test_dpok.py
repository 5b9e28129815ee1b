"""The losses against values worked out by hand; every sign is held."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from dpok_cli.engine.bases.schedule import ddim_schedule
from dpok_cli.engine.rl.objectives.dpok import dpok_loss, policy_loss
from dpok_cli.engine.sampling.step import Denoising, epsilon_kl, gaussian_kl, log_prob

# ratio, advantage, then value and gradient in the ratio of "ppo" and of "clamp", at a clip of 0.2
CASES = [
    (1.0, 2.0, -2.0, -2.0, -2.0, -2.0),
    (1.1, 2.0, -2.2, -2.0, -2.2, -2.0),
    (0.9, -2.0, 1.8, 2.0, 1.8, 2.0),
    # gone far enough in the right direction: both stop
    (1.5, 2.0, -2.4, 0.0, -2.4, 0.0),
    (0.5, -2.0, 1.6, 0.0, 1.6, 0.0),
    # gone far in the wrong direction: "ppo" comes back, "clamp" is stuck
    (0.5, 2.0, -1.0, -2.0, -1.6, 0.0),
    (1.5, -2.0, 3.0, 2.0, 2.4, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "ppo", "ppo_slope", "clamp", "clamp_slope"), CASES)
def test_policy_loss_by_hand(ratio, advantage, ppo, ppo_slope, clamp, clamp_slope):
    at = torch.tensor([ratio], requires_grad=True)

    def value_and_slope(clip_form):
        loss = policy_loss(at, torch.tensor([advantage]), 0.2, clip_form)
        return [loss.item(), torch.autograd.grad(loss.sum(), at)[0].item()]

    assert value_and_slope("ppo") == pytest.approx([ppo, ppo_slope])
    assert value_and_slope("clamp") == pytest.approx([clamp, clamp_slope])


def batch(**changes):
    """Ratios 1.1 and 0.5 from log-probs, with advantages 2 and -1 and KLs 0.1 and 0.3."""
    given = dict(
        log_prob=torch.tensor([-1.0 + math.log(1.1), -2.0 + math.log(0.5)]),
        old_log_prob=torch.tensor([-1.0, -2.0]),
        advantage=torch.tensor([2.0, -1.0]),
        kl=torch.tensor([0.1, 0.3]),
        alpha=10.0,
        beta=0.5,
        ratio_clip=0.2,
    )
    return given | changes


def test_dpok_loss_by_hand():
    loss = dpok_loss(**batch())
    # ppo: -min(2.2, 2.2) = -2.2 and -min(-0.5, -0.8) = 0.8, mean -0.7; KL mean 0.2
    assert loss.loss.item() == pytest.approx(10 * -0.7 + 0.5 * 0.2, rel=1e-6)
    assert loss.measured["kl"].item() == pytest.approx(0.2)
    assert loss.measured["ratio"].tolist() == pytest.approx([1.1, 0.5])
    # clamp: -2.2 and 0.8 too; an upward miss tells them apart
    missed = batch(advantage=torch.tensor([2.0, 1.0]))
    assert dpok_loss(**missed, clip_form="ppo").loss.item() == pytest.approx(10 * -1.35 + 0.1)
    assert dpok_loss(**missed, clip_form="clamp").loss.item() == pytest.approx(10 * -1.5 + 0.1)


@pytest.mark.parametrize("clip_form", ["ppo", "clamp"])
def test_going_down_raises_what_did_well_and_lowers_the_kl(clip_form):
    log_prob = torch.tensor([-1.0, -1.0], requires_grad=True)
    kl = torch.tensor([0.1, 0.3], requires_grad=True)
    given = batch(log_prob=log_prob, old_log_prob=log_prob.detach(), kl=kl, clip_form=clip_form)
    slopes = torch.autograd.grad(dpok_loss(**given).loss, (log_prob, kl))
    # d/d log p = -alpha A / B at ratio 1, and d/d KL = beta / B
    assert slopes[0].tolist() == pytest.approx([-10.0, 5.0])
    assert slopes[1].tolist() == pytest.approx([0.25, 0.25])


def test_alpha_and_beta_scale_their_own_term():
    def value(alpha, beta):
        return dpok_loss(**batch(alpha=alpha, beta=beta)).loss.item()

    assert value(3.0, 0.0) == pytest.approx(3 * value(1.0, 0.0))
    assert value(1.0, 7.0) - value(1.0, 0.0) == pytest.approx(7 * 0.2)


def test_gradients_flow_through_the_policy_alone():
    given = batch()
    for key in ("log_prob", "old_log_prob", "advantage", "kl"):
        given[key].requires_grad_()
    loss = dpok_loss(**given)
    loss.loss.backward()
    assert given["log_prob"].grad is not None
    assert given["kl"].grad is not None
    assert given["old_log_prob"].grad is None
    assert given["advantage"].grad is None
    assert not loss.measured["kl"].requires_grad
    assert not loss.measured["ratio"].requires_grad


@pytest.mark.parametrize("clip_form", ["ppo", "clamp"])
def test_gradients_are_finite_differences_in_double(clip_form):
    generator = torch.Generator().manual_seed(0)
    sample, old_mean, move = torch.randn(3, 6, 3, generator=generator).double().unbind(0)
    advantage = torch.randn(6, generator=generator).double()

    def loss(mean):
        """A Gaussian of unit variance, drawn from ``old_mean``, kept near 0."""
        new, old = (-0.5 * ((sample - m) ** 2).mean(dim=1) for m in (mean, old_mean))
        kl = 0.5 * (mean**2).mean(dim=1)
        return dpok_loss(
            new, old, advantage, kl, alpha=3.0, beta=0.7, ratio_clip=0.05, clip_form=clip_form
        ).loss

    mean = (old_mean + 0.1 * move).requires_grad_()
    assert loss(mean).dtype == torch.double
    assert torch.autograd.gradcheck(loss, mean, eps=1e-6, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("kl_form", ["epsilon", "gaussian"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_gradients_are_finite_differences_through_the_denoising_step(kl_form, prediction):
    """From a toy UNet of two weights to the loss, in the engine's own float32."""
    generator = torch.Generator().manual_seed(1)
    latents, drift = torch.randn(2, 8, 4, 4, 4, generator=generator).unbind(0)
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    denoising = Denoising.of(ddim_schedule(scheduler, 10), 1.0)
    step = torch.arange(8)
    advantage = torch.randn(8, generator=generator)

    def output(weights):
        return weights[0] * latents + weights[1] * drift

    old = torch.tensor([0.4, 0.3])
    before = denoising.distribution(output(old), latents, step)
    drawn = before.mean + before.std * torch.randn(latents.shape, generator=generator)
    old_log_prob = log_prob(drawn, before.mean, before.std)
    reference = output(torch.tensor([0.5, 0.0]))
    reference_mean = denoising.distribution(reference, latents, step).mean

    def loss(weights):
        mean = denoising.distribution(output(weights), latents, step).mean
        std = before.std
        if kl_form == "gaussian":
            kl = gaussian_kl(mean, reference_mean, std)
        else:
            kl = epsilon_kl(output(weights), reference)
        new = log_prob(drawn, mean, std)
        return dpok_loss(new, old_log_prob, advantage, kl, alpha=1.0, beta=1.0, ratio_clip=0.5).loss

    weights = torch.tensor([0.42, 0.28], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(weights), weights)
    with torch.no_grad():
        size = 0.01
        moves = torch.eye(2) * size
        numeric = [(loss(weights + move) - loss(weights - move)) / (2 * size) for move in moves]
    assert gradient.tolist() == pytest.approx([value.item() for value in numeric], rel=1e-3)
