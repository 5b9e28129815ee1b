"""The policy's Gaussian is diffusers' DDIM step, and its log-prob and KL are torch's."""

from itertools import product

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch.distributions import Normal, kl_divergence

from dpok_cli.engine.bases.schedule import ddim_schedule, flow_schedule
from dpok_cli.engine.sampling.step import (
    Denoising,
    epsilon_kl,
    gaussian_kl,
    log_prob,
    with_window,
)

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


@pytest.mark.parametrize("scheduler", [DDIMScheduler(**NOISE), DDIMScheduler(**SD21)])
def test_a_window_leaves_its_steps_and_ends_where_the_schedule_ends(scheduler):
    whole = ddim_schedule(scheduler, 20)
    window = whole.with_window(10, 4)
    assert len(window.timesteps) == 14
    for part, before in zip(window[:6], whole[:6], strict=True):
        assert torch.equal(part[:10], before[:10])
    assert window.std[:10].gt(0).all()
    assert window.std[10:].eq(0).all()
    # From the 11th level on in strides of 2.5 steps, each to where the next one begins.
    assert window.timesteps[10:].tolist() == whole.timesteps[[10, 12, 15, 17]].tolist()
    same(window.signal_next[10:], whole.signal_next[[11, 14, 16, 19]], "signal_next")
    same(window.variance_next[10:], whole.variance_next[[11, 14, 16, 19]], "variance_next")
    same(window.signal_next[9:-1], window.signal[10:], "the levels follow on one another")


def test_a_window_may_keep_all_of_the_other_steps():
    whole = ddim_schedule(DDIMScheduler(**NOISE), 8)
    for rest in (0, 5, 9):
        window = whole.with_window(3, rest)
        assert window.timesteps.tolist() == whole.timesteps.tolist()
        assert torch.equal(window.signal_next, whole.signal_next)
        assert window.std.gt(0).tolist() == [True] * 3 + [False] * 5
    everything = whole.with_window(8, 2)
    assert all(map(torch.equal, everything[:6], whole[:6]))


@pytest.mark.parametrize(("fraction", "noisy"), [(0.5, 4), (0.25, 3), (0.01, 2)])
def test_the_window_is_a_share_of_the_steps_that_have_noise(fraction, noisy):
    """Flow matching from pure noise: the first step and the last ones have none."""
    sigmas = torch.linspace(1, 0, 9)
    schedule = flow_schedule(sigmas, 1000 * sigmas[:-1])
    assert schedule.std.gt(0).tolist() == [False, *[True] * 6, False]
    window = with_window(schedule, 1.0, fraction, 1)
    assert window.std.gt(0).tolist() == [False, *[True] * (noisy - 1), False]
    assert with_window(schedule, 0.0, fraction, 1) is schedule


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_corrupt_adds_the_noise_of_a_level_and_its_target_leads_back(prediction):
    scheduler = DDIMScheduler(**NOISE, prediction_type=prediction, clip_sample=False)
    denoising = Denoising.of(ddim_schedule(scheduler, 10), 1.0)
    x_0, noise = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    step = torch.tensor([0, 4, 9])
    noised, target = denoising.corrupt(x_0, noise, step)
    timesteps = denoising.timesteps[step]
    same(noised, scheduler.add_noise(x_0, noise, timesteps), "x_t")
    expected = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(x_0, noise, timesteps),
        "sample": x_0,
    }
    same(target, expected[prediction], "target")


def test_corrupt_of_flow_matching():
    sigmas = torch.tensor([0.8, 0.4, 0.0])
    denoising = Denoising.of(flow_schedule(sigmas, 1000 * sigmas[:-1]), 0.0)
    x_0, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0)
    noised, target = denoising.corrupt(x_0, noise, torch.tensor([1]))
    assert noised.item() == pytest.approx(0.6 * 2.0 + 0.4 * -1.0)
    assert target.item() == pytest.approx(-3.0)
