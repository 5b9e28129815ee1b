"""The numbers of every family, against what is written here from the formulas, in float64."""

import copy
import warnings

import pytest
import torch
from diffusers import DDIMScheduler

from dpok_cli.engine.bases.conditioning import Conditioning
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.sampling.step import Denoising
from dpok_cli.errors import InputError
from support.families import FAMILIES, make

FLOW = ("sd35", "flux", "qwen", "zimage")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(family):
    return make(family)


@pytest.fixture
def base(pipeline):
    return DiffusionModel(copy.copy(pipeline)).base


# ----------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_schedule_is_that_of_the_pipeline_after_a_call(pipeline, base, family, size, steps):
    """FLUX.1's and Qwen-Image's depend on the image's size."""
    height, width = size
    if (family, steps) == ("qwen", 1):  # its last level of noise, which is the only one, is fixed
        said = r"^--num-inference-steps 1: .* needs 2 or more\.$"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError, match=said):
                base.schedule(steps, base.latent_shape(height, width))
        return
    before = base.schedule(steps, base.latent_shape(height, width))
    generator = torch.Generator().manual_seed(0)
    given = dict(num_inference_steps=steps, generator=generator, output_type="latent")
    pipeline("cat", height=height, width=width, **given)
    after = base.schedule(steps, base.latent_shape(height, width))
    scheduler = pipeline.scheduler
    for ours in (before, after):
        assert len(ours.timesteps) == steps
        torch.testing.assert_close(ours.timesteps, scheduler.timesteps.to(ours.timesteps))
        if family in FLOW:
            sigmas = scheduler.sigmas
            assert torch.equal(ours.noise, sigmas[:-1])
            torch.testing.assert_close(ours.signal, 1 - sigmas[:-1])
            torch.testing.assert_close(ours.variance_next, sigmas[1:] ** 2)
        else:
            signal = scheduler.alphas_cumprod[scheduler.timesteps].sqrt()
            torch.testing.assert_close(ours.signal, signal)
    if family in ("flux", "qwen"):
        other = base.schedule(steps, base.latent_shape(64, 64))
        assert torch.equal(other.noise, before.noise) == (steps == 1)


# --------------------------------------------------------------------------------------- the step


def levels(base, steps=6):
    """Signal and noise before and after each step, float64 (K,)."""
    schedule = base.schedule(steps, base.latent_shape(16, 16))
    a, s = schedule.signal.double(), schedule.noise.double()
    return schedule, a, s, schedule.signal_next.double(), schedule.variance_next.double().sqrt()


def output_of(base, x_0, e, a, s):
    """What a perfect denoiser says of x_t = a x_0 + s e."""
    kind = base.schedule(6, base.latent_shape(16, 16)).prediction_type
    return {"epsilon": e, "flow": e - x_0, "v_prediction": a * e - s * x_0}[kind]


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)


def test_a_step_at_eta_one_is_the_posterior(base, draw):
    """q(x_s | x_t, x_0) of two Gaussians: x_s given x_0, and x_t given x_s."""
    schedule, *all_levels = levels(base)
    denoising = Denoising.of(schedule, 1.0)
    stochastic = denoising.stochastic.tolist()
    assert len(stochastic) >= 3
    for step in stochastic:
        a, s, a_next, s_next = (level[step] for level in all_levels)
        x_0, e = draw(), draw()
        x_t = a * x_0 + s * e
        factor = a / a_next  # x_t = factor x_s + more noise
        added = s**2 - (factor * s_next) ** 2
        precision = 1 / s_next**2 + factor**2 / added
        mean = (a_next * x_0 / s_next**2 + factor * x_t / added) / precision
        ours = denoising.distribution(
            output_of(base, x_0, e, a, s).float(), x_t.float(), torch.tensor([step])
        )
        torch.testing.assert_close(ours.mean.double(), mean, rtol=1e-4, atol=2e-4)
        assert ours.std.item() == pytest.approx(precision.rsqrt().item(), rel=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_ends_at_the_next_levels_of_signal_and_noise(base, draw, eta):
    schedule, a, s, a_next, s_next = levels(base)
    denoising = Denoising.of(schedule, eta)
    for step in range(len(denoising)):
        ours, again = (
            denoising.distribution(
                output_of(base, x_0, e, a[step], s[step]).float(),
                (a[step] * x_0 + s[step] * e).float(),
                torch.tensor([step]),
            )
            for x_0, e in ((torch.ones(1, 4, 8, 8).double(), 0 * draw()), (0 * draw(), draw() ** 0))
        )
        assert ours.mean.mean().item() == pytest.approx(a_next[step].item(), abs=2e-4)
        variance = again.mean.double().mean() ** 2 + again.std.double().item() ** 2
        assert variance.item() == pytest.approx(s_next[step].item() ** 2, abs=2e-4)


def test_a_step_at_eta_zero_is_that_of_the_scheduler(base, family, draw):
    schedule, *_ = levels(base)
    denoising = Denoising.of(schedule, 0.0)
    scheduler = copy.deepcopy(base.scheduler)
    if family in FLOW:
        base.set_timesteps(scheduler, 6, base.tokens(base.latent_shape(16, 16)))
    else:
        assert isinstance(scheduler, DDIMScheduler)
        scheduler.set_timesteps(6)
    for step, timestep in enumerate(scheduler.timesteps):
        output, x_t = draw().float(), draw().float()
        ours = denoising.distribution(output, x_t, torch.tensor([step]))
        expected = scheduler.step(output, timestep, x_t).prev_sample
        torch.testing.assert_close(ours.mean, expected, rtol=1e-5, atol=2e-6)
        assert ours.std.item() == 0


@pytest.mark.parametrize("flow_family", FLOW)
def test_the_flow_steps_that_are_deterministic(flow_family):
    """The first forgets nothing of x_T, the last leaves no noise, and small ones have no ratio."""
    base = DiffusionModel(make(flow_family)).base
    for steps in (4, 10, 28):
        schedule, a, s, _, s_next = levels(base, steps)
        denoising = Denoising.of(schedule, 1.0)
        expected = [
            step for step in range(steps) if s[step] < 1 and s_next[step] >= 0.05 and a[step] > 0
        ]
        assert denoising.stochastic.tolist() == expected
        assert 0 not in expected
        assert steps - 1 not in expected
        assert len(expected) >= steps - 4


# ------------------------------------------------------------------------- gradient checkpointing


def test_gradient_checkpointing_changes_no_gradient(family, shake):
    """It runs each block a second time, in the backward pass."""

    def gradients(checkpointing):
        model = DiffusionModel(make(family))
        model.adapter.add(2, 4.0, (), seed=0)
        shake(model)
        runs = []
        blocks = [each for name, each in model.base.network.named_modules() if counted(name)]
        assert blocks
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: runs.append(1))
        if checkpointing:
            model.base.network.enable_gradient_checkpointing()
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        direction = torch.randn(2, 4, 8, 8, generator=generator)
        timesteps = model.base.draw_timesteps(2, generator)
        texts: Conditioning = model.encode(["cat", "a green rabbit"])
        output = model.denoiser(latents, timesteps, texts, 3.0)
        (output * direction).sum().backward()
        found = {name: weight.grad for name, weight in model.adapter.named_parameters()}
        return output.detach(), found, len(runs) / len(blocks)

    def counted(name):
        parent, _, index = name.rpartition(".")
        kind = parent.rpartition(".")[2]
        kinds = ("resnets", "transformer_blocks", "layers", "noise_refiner", "context_refiner")
        return index.isdecimal() and kind in kinds

    (plain, expected, once), (again, ours, twice) = gradients(False), gradients(True)
    assert once == 1
    assert 1.8 < twice <= 2  # the first block in the middle of a UNet is left out
    assert torch.equal(plain, again)
    without = {name for name, gradient in expected.items() if gradient is None}
    assert {name for name, gradient in ours.items() if gradient is None} == without
    # The last block's text of Qwen-Image goes nowhere.
    assert len(without) == (2 if family == "qwen" else 0)
    assert all("_blocks.1.attn.to_add_out." in name for name in without)
    moved = 0
    for name in expected.keys() - without:
        assert torch.equal(ours[name], expected[name]), name
        moved += bool(expected[name].any())
    assert moved >= 0.9 * len(expected.keys() - without)
