"""Rollouts: a sample is its own, and its log-probs can be found again."""

import pytest
import torch

from dpok_cli.config import SamplingConfig
from dpok_cli.engine.rl.rollout import Trajectories, Transitions, choose_steps, rollout, transitions
from dpok_cli.engine.sampling.sampler import Sampler

# Noise from which an untrained UNet does not amplify latents far beyond what real ones are.
GENTLE = dict(beta_end=0.004)


def sampler_of(model, steps, guidance_scale, batch_size, eta=1.0):
    config = SamplingConfig(
        num_inference_steps=steps,
        eta=eta,
        guidance_scale=guidance_scale,
        sample_batch_size=batch_size,
    )
    return Sampler(model, config)


def draw(sampler, prompt, seeds, starts=None, whole=True):
    embeds = sampler.model.encode(["a green rabbit", "two cats"], "blurred")
    parts = rollout(sampler, embeds, torch.tensor(prompt), seeds, starts, whole)
    return Trajectories.cat(list(parts)), embeds


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_sample_does_not_depend_on_its_batch(model, guidance_scale):
    prompt, seeds = [0, 1, 1, 0, 1], [3, 1, 4, 1, 5]
    together, _ = draw(sampler_of(model, 4, guidance_scale, 8), prompt, seeds)
    for batch_size in (1, 2):
        apart, _ = draw(sampler_of(model, 4, guidance_scale, batch_size), prompt, seeds)
        assert apart.prompt.tolist() == prompt
        assert (apart.images - together.images).abs().max() <= 1e-5
    turned, _ = draw(sampler_of(model, 4, guidance_scale, 3), prompt[::-1], seeds[::-1])
    assert (turned.images.flip(0) - together.images).abs().max() <= 1e-5
    # and yet seeds and prompts matter
    assert (together.images[0] - together.images[3]).abs().max() > 1e-2
    assert (together.images[1] - together.images[3]).abs().max() > 1e-5


def test_a_start_is_the_first_noise_and_no_other(model):
    prompt, seeds = [0, 0, 1, 0], [3, 1, 4, 7]
    sampler = sampler_of(model, 4, 2.0, 4)
    alone, _ = draw(sampler, prompt, seeds)
    drawn, _ = draw(sampler_of(model, 4, 2.0, 3), prompt, seeds, [3, 3, 3, 7])
    for sample, start in enumerate([0, 0, 0, 3]):
        assert torch.equal(drawn.latents[sample, 0], alone.latents[start, 0])
    for sample in (0, 3):  # those that start from their own seed are as they were
        torch.testing.assert_close(drawn.latents[sample], alone.latents[sample])
    # From one x_T, the first step's noise is each seed's own.
    embeds = model.encode(["a green rabbit"], "blurred")
    first = sampler.policy(alone.latents[:1, 0], torch.tensor([0]), embeds)
    for sample, seed in ((0, 3), (1, 1)):
        generator = torch.Generator().manual_seed(seed)
        _, noise = (torch.randn(4, 8, 8, generator=generator) for _ in range(2))
        step = (drawn.latents[sample, 1] - first.mean[0]) / sampler.denoising.std[0]
        torch.testing.assert_close(step, noise, rtol=1e-3, atol=1e-3)


def test_shapes_and_ranges(model):
    drawn, _ = draw(sampler_of(model, 3, 2.0, 2), [0, 1], [1, 2])
    assert drawn.latents.shape == (2, 4, 4, 8, 8)
    assert drawn.log_prob.shape == (2, 3)
    assert drawn.images.shape == (2, 3, 16, 16)
    assert {drawn.latents.dtype, drawn.log_prob.dtype, drawn.images.dtype} == {torch.float32}
    assert drawn.images.min() >= 0
    assert drawn.images.max() <= 1
    assert not drawn.latents.requires_grad
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.latents[0, 0], noise, rtol=0, atol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_log_probs_are_found_again_in_another_batch(
    make_model, shake, guidance_scale, prediction_type
):
    """Trap: the ratio before the first update is 1."""
    model = make_model(prediction_type=prediction_type, **GENTLE)
    model.adapter.add(4, 0, ["to_q", "to_v"], seed=0)
    shake(model, 0.1)
    sampler = sampler_of(model, 6, guidance_scale, 4)
    drawn, embeds = draw(sampler, [0, 1] * 3, range(6))
    steps = choose_steps(6, sampler.denoising.stochastic, 1.0, "random", torch.Generator())
    taken = transitions(drawn, torch.zeros(6), torch.zeros(6, 2), steps)
    assert len(taken) == 36
    for start in range(0, 36, 9):
        batch = taken[slice(start, start + 9)]
        policy = sampler.policy(batch.latents, batch.step, embeds[batch.prompt])
        ratio = (policy.log_prob(batch.next_latents) - batch.log_prob).exp()
        assert (ratio - 1).abs().max() <= 1e-6


def test_guidance_counts_twice(model):
    draw(sampler_of(model, 3, 1.0, 2), [0, 1, 0], [1, 2, 3])
    assert model.denoiser.evaluations == 9
    draw(sampler_of(model, 3, 1.5, 2), [0, 1, 0], [1, 2, 3])
    assert model.denoiser.evaluations == 9 + 18


def test_guidance_is_inside_the_output(model):
    embeds = model.encode(["a green rabbit"], "blurred")
    negative = model.encode(["blurred"])
    latents, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        guided, unguided, to_negative = (
            model.denoiser(latents, timesteps, given, scale)
            for given, scale in ((embeds, 3.0), (embeds, 1.0), (negative, 1.0))
        )
    assert (guided - unguided).abs().max() > 1e-3
    torch.testing.assert_close(guided, to_negative + 3 * (unguided - to_negative))


def test_a_deterministic_last_step_has_no_log_prob(make_model):
    model = make_model(set_alpha_to_one=True, steps_offset=0)
    drawn, _ = draw(sampler_of(model, 4, 1.0, 2), [0, 1], [1, 2])
    assert drawn.log_prob[:, 3].tolist() == [0.0, 0.0]
    assert (drawn.log_prob[:, :3] != 0).all()
    assert drawn.latents.isfinite().all()


def test_without_eta_there_is_no_log_prob(model):
    drawn, _ = draw(sampler_of(model, 3, 1.0, 1, eta=0.0), [0], [1])
    assert drawn.log_prob.tolist() == [[0.0, 0.0, 0.0]]


def test_an_objective_may_need_x_0_alone(model):
    sampler = sampler_of(model, 3, 1.0, 2)
    drawn, _ = draw(sampler, [0, 1, 0], [1, 2, 3], whole=False)
    whole, _ = draw(sampler, [0, 1, 0], [1, 2, 3])
    assert torch.equal(drawn.latents, whole.latents[:, -1:])
    assert drawn.log_prob.shape == (3, 0)
    assert torch.equal(drawn.images, whole.images)


def test_the_log_ratio_to_the_reference_model_is_of_all_noisy_steps(make_model, shake):
    model = make_model(**GENTLE)
    model.adapter.add(4, 0, ["to_q", "to_v"], seed=0)
    sampler, given = sampler_of(model, 5, 3.0, 2), ([0, 1, 0], [1, 2, 3])
    embeds = model.encode(["a green rabbit", "two cats"], "blurred")

    def drawn(**options):
        parts = rollout(sampler, embeds, torch.tensor(given[0]), given[1], **options)
        return Trajectories.cat(list(parts))

    # An adapter that does nothing is the reference model.
    torch.testing.assert_close(drawn(against_reference=True).log_ratio, torch.zeros(3))
    shake(model, 0.1)
    found, plain = drawn(against_reference=True), drawn()
    assert plain.log_ratio.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(found.latents, plain.latents)
    assert torch.equal(found.log_prob, plain.log_prob)
    expected = torch.zeros(3)
    for step in sampler.denoising.stochastic.tolist():
        latents, rows = found.latents[:, step], torch.full((3,), step)
        reference = sampler.reference(latents, rows, embeds[found.prompt])
        normal = torch.distributions.Normal(reference.mean, reference.std)
        of_reference = normal.log_prob(found.latents[:, step + 1]).sum(dim=(1, 2, 3))
        expected += found.log_prob[:, step] * latents[0].numel() - of_reference
    assert expected.abs().min() > 0.1
    torch.testing.assert_close(found.log_ratio, expected, rtol=1e-3, atol=1e-3)
    alone = drawn(against_reference=True, whole=False)
    torch.testing.assert_close(alone.log_ratio, found.log_ratio)


def numbered(samples=3, steps=5):
    """Trajectories whose latents say where they stand: 100 * sample + step."""
    places = 100 * torch.arange(samples)[:, None] + torch.arange(steps + 1)
    return Trajectories(
        prompt=torch.arange(samples) + 7,
        latents=places.float().view(samples, steps + 1, 1, 1, 1),
        log_prob=-places[:, :steps].float(),
        images=torch.zeros(samples, 3, 2, 2),
        log_ratio=torch.zeros(samples),
    )


def take(stochastic, fraction, seed=0, samples=3, choice="random"):
    random = torch.Generator().manual_seed(seed)
    steps = choose_steps(samples, torch.tensor(stochastic), fraction, choice, random)
    rewards, of_actions = torch.arange(samples) + 0.5, torch.arange(samples) - 0.5
    advantages = torch.stack([of_actions, torch.full_like(of_actions, 9.0)], dim=1)
    return transitions(numbered(samples), rewards, advantages, steps)


def test_a_transition_is_two_neighbours_of_one_trajectory():
    taken = take([0, 1, 2, 3], 1.0)  # of five steps, the last one deterministic
    assert len(taken) == 12
    place = taken.latents.flatten().long()
    sample, step = place // 100, place % 100
    assert sorted(place.tolist()) == [100 * m + k for m in range(3) for k in range(4)]
    assert taken.step.tolist() == step.tolist()
    assert (taken.next_latents.flatten().long() - place).tolist() == [1] * 12
    assert taken.prompt.tolist() == (sample + 7).tolist()
    assert taken.log_prob.tolist() == (-place).tolist()
    assert taken.reward.tolist() == (sample + 0.5).tolist()
    assert taken.advantage.tolist() == (sample - 0.5).tolist()


@pytest.mark.parametrize("choice", ["random", "noisiest"])
@pytest.mark.parametrize(("fraction", "kept"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.7, 3), (1.0, 4)])
def test_the_fraction_is_of_each_trajectory(fraction, kept, choice):
    taken = take([0, 1, 2, 3], fraction, choice=choice)
    places = taken.latents.flatten().long()
    assert [(places // 100 == sample).sum().item() for sample in range(3)] == [kept] * 3
    assert places.unique().numel() == 3 * kept  # none twice


def test_steps_are_drawn_anew_for_each_trajectory():
    steps = take([0, 1, 2, 3], 0.25, samples=60).step
    assert set(steps.tolist()) == {0, 1, 2, 3}
    assert take([0, 1, 2, 3], 0.25, samples=60).step.tolist() == steps.tolist()
    assert take([0, 1, 2, 3], 0.25, seed=1, samples=60).step.tolist() != steps.tolist()


def test_the_noisiest_steps_are_the_first_ones_of_every_trajectory():
    assert take([0, 1, 2, 3], 0.5, choice="noisiest").step.tolist() == [0, 1] * 3
    assert take([1, 3, 4], 0.7, choice="noisiest").step.tolist() == [1, 3] * 3


def test_only_stochastic_steps_are_taken():
    assert set(take([1, 3], 1.0).step.tolist()) == {1, 3}


def test_transitions_join_and_part():
    first, second = take([0, 1], 1.0), take([2], 1.0)
    both = Transitions.cat([first, second])
    assert len(both) == 9
    assert both.step.tolist() == [*first.step.tolist(), *second.step.tolist()]
    assert both[torch.tensor([8, 0])].latents.flatten().tolist() == [
        second.latents.flatten()[2].item(),
        first.latents.flatten()[0].item(),
    ]
