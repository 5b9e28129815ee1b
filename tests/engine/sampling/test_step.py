"""The policy's Gaussian is diffusers' DDIM step, and its log-prob and KL are torch's."""

from itertools import product

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch.distributions import Normal, kl_divergence

from dpok_cli.engine.bases.schedule import ddim_schedule
from dpok_cli.engine.sampling.step import Denoising, epsilon_kl, gaussian_kl, log_prob

NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD21 = NOISE | dict(
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    set_alpha_to_one=False,
    steps_offset=1,
    clip_sample=False,
)


def same(actual, expected, what):
    torch.testing.assert_close(
        actual, expected, rtol=1e-6, atol=1e-6, msg=lambda text: f"{what}\n{text}"
    )


def compare_with_diffusers(scheduler, steps, eta):
    """Every step's mean and sigma against ``DDIMScheduler.step``."""
    generator = torch.Generator().manual_seed(0)
    latents, output = torch.randn(2, 3, 4, 5, 6, generator=generator).unbind(0)
    zero = torch.zeros_like(latents)
    denoising = Denoising.of(ddim_schedule(scheduler, steps), eta)
    scheduler.set_timesteps(steps)
    assert denoising.timesteps.tolist() == scheduler.timesteps.tolist()
    assert len(denoising) == steps
    for index, timestep in enumerate(scheduler.timesteps):
        what = f"step {index} of {dict(scheduler.config)}"
        step = torch.full((3,), index)
        policy = denoising.distribution(output, latents, step)
        mean, std = policy.mean, policy.std
        stepped = scheduler.step(output, timestep, latents, eta=eta, variance_noise=zero)
        assert mean.isfinite().all(), what
        if stepped.prev_sample.isfinite().all():
            same(mean, stepped.prev_sample, what)
        # With nothing to denoise, one unit of noise is sigma.
        noisy = scheduler.step(zero, timestep, zero, eta=eta, variance_noise=torch.ones_like(zero))
        if noisy.prev_sample.isfinite().all():
            same(std.expand_as(zero), noisy.prev_sample if eta else zero, what)
    return denoising


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_mean_and_sigma_are_those_of_the_ddim_step(steps, eta):
    for prediction, to_one, offset, spacing, clip in product(
        ("epsilon", "v_prediction", "sample"),
        (False, True),
        (0, 1),
        ("leading", "trailing"),
        (False, True),
    ):
        scheduler = DDIMScheduler(
            **NOISE,
            prediction_type=prediction,
            set_alpha_to_one=to_one,
            steps_offset=offset,
            timestep_spacing=spacing,
            clip_sample=clip,
            clip_sample_range=0.8,
        )
        compare_with_diffusers(scheduler, steps, eta)


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_no_signal_at_all_in_the_first_step_is_no_division_by_zero(steps, eta):
    scheduler = DDIMScheduler(**SD21)
    denoising = compare_with_diffusers(scheduler, steps, eta)
    assert denoising.signal[0] == 0
    for field in (denoising.signal_next, denoising.std):
        assert field.isfinite().all()


def test_each_row_takes_its_own_step():
    denoising = Denoising.of(ddim_schedule(DDIMScheduler(**NOISE), 5), 1.0)
    output, latents = torch.randn(2, 3, 4, 2, 2).unbind(0)
    step = torch.tensor([4, 0, 2])
    policy = denoising.distribution(output, latents, step)
    mean, std = policy.mean, policy.std
    assert std.shape == (3, 1, 1, 1)
    assert std.flatten().tolist() == denoising.std[step].tolist()
    for row in range(3):
        rows = slice(row, row + 1)
        alone = denoising.distribution(output[rows], latents[rows], step[rows]).mean
        torch.testing.assert_close(alone, mean[rows], rtol=0, atol=0)


def test_before_time_begins_the_final_level_holds():
    to_one = Denoising.of(ddim_schedule(DDIMScheduler(**NOISE, set_alpha_to_one=True), 10), 1.0)
    assert to_one.signal_next[-1] == 1
    kept = DDIMScheduler(**NOISE, set_alpha_to_one=False)
    assert (
        Denoising.of(ddim_schedule(kept, 10), 1.0).signal_next[-1] == kept.alphas_cumprod[0].sqrt()
    )


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [False, True])
def test_a_step_without_noise_has_no_density(to_one, offset):
    scheduler = DDIMScheduler(**NOISE, set_alpha_to_one=to_one, steps_offset=offset)
    denoising = Denoising.of(ddim_schedule(scheduler, 10), 1.0)
    # At the last step sigma is sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev)): with a_prev = 1,
    # or a_prev = a, it is 0.
    quiet_end = to_one or offset == 0
    assert (denoising.std[-1] == 0) == quiet_end
    assert denoising.stochastic.tolist() == list(range(9 if quiet_end else 10))
    output, latents = torch.randn(2, 1, 4, 2, 2).unbind(0)
    policy = denoising.distribution(output, latents, torch.tensor([9]))
    mean, std = policy.mean, policy.std
    assert mean.isfinite().all()
    assert std.isfinite().all()


def test_without_eta_nothing_is_stochastic():
    assert Denoising.of(ddim_schedule(DDIMScheduler(**NOISE), 10), 0.0).stochastic.tolist() == []


def test_sigma_grows_with_eta():
    full, half = (
        Denoising.of(ddim_schedule(DDIMScheduler(**NOISE), 10), eta).std for eta in (1.0, 0.5)
    )
    torch.testing.assert_close(half, full / 2)
    assert full[0] > 0.5


def test_the_scheduler_is_left_alone():
    scheduler = DDIMScheduler(**NOISE)
    scheduler.set_timesteps(3)
    Denoising.of(ddim_schedule(scheduler, 10), 1.0)
    assert len(scheduler.timesteps) == 3


def test_another_scheduler_gives_its_noise_levels():
    scheduler = PNDMScheduler(**NOISE, steps_offset=1, skip_prk_steps=True)
    as_ddim = DDIMScheduler(**NOISE, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    denoising = Denoising.of(ddim_schedule(as_ddim, 10), 1.0)
    levels = scheduler.alphas_cumprod[denoising.timesteps]
    torch.testing.assert_close(denoising.signal, levels.sqrt())


def test_half_precision_is_computed_in_float32():
    denoising = Denoising.of(ddim_schedule(DDIMScheduler(**NOISE), 5), 1.0)
    output, latents = torch.randn(2, 3, 4, 2, 2).half().unbind(0)
    step = torch.tensor([3, 0, 2])
    policy = denoising.distribution(output, latents, step)
    mean, std = policy.mean, policy.std
    expected = denoising.distribution(output.float(), latents.float(), step).mean
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, expected, rtol=0, atol=0)
    for function, arguments in (
        (log_prob, (latents, output, std.half())),
        (gaussian_kl, (latents, output, std.half())),
        (epsilon_kl, (latents, output)),
    ):
        value = function(*arguments)
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value, function(*(argument.float() for argument in arguments)), rtol=0, atol=0
        )


def gaussians():
    generator = torch.Generator().manual_seed(0)
    sample, mean, other = torch.randn(3, 5, 4, 3, 2, generator=generator).unbind(0)
    std = torch.tensor([1e-3, 0.02, 0.5, 1.0, 3.0]).view(5, 1, 1, 1)
    return mean + std * sample, mean, mean + std * other, std


def test_log_prob_is_the_mean_over_the_elements():
    sample, mean, _, std = gaussians()
    expected = Normal(mean, std).log_prob(sample).mean(dim=(1, 2, 3))
    torch.testing.assert_close(log_prob(sample, mean, std), expected, rtol=1e-6, atol=1e-6)


def test_log_prob_by_hand():
    at_mean = log_prob(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 1))
    assert at_mean.item() == pytest.approx(-0.9189385, abs=1e-6)  # -log(2 pi) / 2
    sample = torch.tensor([[[[0.0, 2.0]]]])  # 0 and 4 sigma away: mean of 0 and 16, halved
    value = log_prob(sample, torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 1), 0.5))
    assert value.item() == pytest.approx(-4 + 0.6931472 - 0.9189385, abs=1e-6)


def test_gaussian_kl_is_the_mean_over_the_elements():
    _, mean, other, std = gaussians()
    expected = kl_divergence(Normal(mean, std), Normal(other, std)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_kl(mean, other, std), expected, rtol=1e-5, atol=1e-6)


def test_kls_by_hand():
    one, other = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    # gaps 1 and 2: squares 1 and 4, mean 2.5
    assert epsilon_kl(one, other).tolist() == [2.5]
    assert gaussian_kl(one, other, torch.full((1, 1, 1, 1), 0.5)).tolist() == [2.5 / (2 * 0.25)]
    assert epsilon_kl(one, one).tolist() == [0.0]
