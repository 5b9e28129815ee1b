"""DPOK's loop on a tiny model: what a round measures, what it draws, compares and keeps."""

import math
from dataclasses import replace

import pytest
import torch

from dpok_cli.engine.rl.buffer import Buffer
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.rl.objectives.dpok import dpok_loss
from dpok_cli.engine.rl.value import ValueFunction
from dpok_cli.engine.sampling.step import epsilon_kl, gaussian_kl
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward

# Noise from which an untrained UNet does not amplify latents far beyond what real ones are.
GENTLE = dict(beta_end=0.004)


def train(config, model, reward):
    return list(train_rl(config, model, reward))


def test_every_round_is_measured(model, make_config, green):
    first, second = train(make_config(), model, green)
    assert {
        "round",
        "samples",
        "reward/mean",
        "reward/std",
        "reward/green",
        "kl",
        "loss",
        "ratio/mean",
        "ratio/first_max_dev",
        "clip_fraction",
        "grad_norm",
        "seconds/rollout",
        "seconds/reward",
        "seconds/update",
        "denoiser_evaluations",
    } <= first.keys()
    assert first.keys() == second.keys()
    assert all(math.isfinite(value) for value in (*first.values(), *second.values()))
    assert (first["round"], second["round"]) == (1, 2)
    assert (first["samples"], second["samples"]) == (4, 8)
    # 4 samples of 4 steps, then 2 updates of 4 transitions by policy and reference
    assert (first["denoiser_evaluations"], second["denoiser_evaluations"]) == (32, 64)
    assert first["reward/green"] == first["reward/mean"]
    assert first["reward/std"] > 0
    assert first["grad_norm"] > 0
    assert first["kl"] < second["kl"]


def test_the_spread_and_the_gradient_norm_by_hand(rl_loop, model, make_config, green, monkeypatch):
    loop, norms = rl_loop(make_config(updates_per_round=3), model, green), []
    step = loop.updater.step
    monkeypatch.setattr(loop.updater, "step", lambda: norms.append(step()) or norms[-1])
    record = loop.advance(1)
    rewards = loop.buffer.examples.reward  # each as often as the others
    assert record["reward/std"] == pytest.approx(
        (rewards - rewards.mean()).square().mean().sqrt().item()
    )
    assert record["grad_norm"] == pytest.approx(sum(norms).item() / 3)
    assert len(norms) == 3


def test_a_weighted_reward_is_measured_in_whole_and_in_parts(model, make_config, green, constant):
    (three, _) = constant(3.0).rewards["constant"]
    parts = [*green.rewards.values(), (three, -2.0)]
    (metrics,) = train(make_config(rounds=1), model, WeightedReward(parts))
    assert metrics["reward/constant"] == 3.0
    assert metrics["reward/mean"] == pytest.approx(metrics["reward/green"] - 6.0, abs=1e-6)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("kl", ["epsilon", "gaussian"])
def test_the_ratio_before_the_first_update_is_1(make_model, make_config, green, guidance_scale, kl):
    config = make_config(
        guidance_scale=guidance_scale, kl=kl, batch_size=3, sample_batch_size=4, rounds=3
    )
    records = train(config, make_model(**GENTLE), green)
    assert [record["ratio/first_max_dev"] <= 1e-6 for record in records] == [True] * 3
    # and afterwards it moves
    assert all(abs(record["ratio/mean"] - 1) > 1e-6 for record in records)


def test_the_clip_fraction_counts_ratios_outside_the_band(model, make_config, green):
    (narrow,) = train(make_config(rounds=1, ratio_clip=1e-9), model, green)
    # the first of two updates is at ratio 1 (or within rounding), the second is not
    assert 0.5 <= narrow["clip_fraction"] <= 1
    (wide,) = train(make_config(rounds=1, ratio_clip=0.9), model, green)
    assert wide["clip_fraction"] == 0


def test_the_learning_rate_warms_up_and_falls(model, make_config, green):
    config = make_config(rounds=4, updates_per_round=1, lr_schedule="linear", lr_warmup_steps=2)
    rates = [record["learning_rate"] for record in train(config, model, green)]
    assert rates == pytest.approx([5e-3, 1e-2, 5e-3, 0.0])


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("kl", ["epsilon", "gaussian"])
def test_the_kl_is_of_the_form_asked_for(
    rl_loop, model, shake, make_config, green, kl, guidance_scale
):
    loop = rl_loop(make_config(kl=kl, guidance_scale=guidance_scale), model, green)
    loop.advance(1)
    shake(model)
    batch, denoising = loop.buffer.examples, loop.sampler.denoising

    def output():
        timesteps, embeds = denoising.timesteps[batch.step], loop.conditioning[batch.prompt]
        with torch.no_grad():
            return model.denoiser(batch.latents, timesteps, embeds, guidance_scale)

    policy = output()
    with model.reference():
        frozen = output()
    if kl == "gaussian":
        new, old = (
            denoising.distribution(each, batch.latents, batch.step) for each in (policy, frozen)
        )
        expected = gaussian_kl(new.mean, old.mean, new.std)
    else:
        expected = epsilon_kl(policy, frozen)
    measured = loop.objective.loss(batch).measured
    assert measured["kl"].item() == pytest.approx(expected.mean().item(), rel=1e-4)
    assert expected.mean() > 1e-3


@pytest.mark.parametrize("clip_form", ["ppo", "clamp"])
@pytest.mark.parametrize("kl", ["epsilon", "gaussian"])
def test_the_loss_is_that_of_the_settings(
    clip_form, kl, rl_loop, make_model, make_config, green, shake
):
    settings = dict(alpha=3.0, beta=0.5, ratio_clip=1e-3, clip_form=clip_form)
    config = make_config(**settings, kl=kl, advantage_clip=0.7)
    loop = rl_loop(config, make_model(**GENTLE), green)
    loop.advance(1)
    shake(loop.sampler.model, size=0.02)
    uneven = torch.linspace(-1, 2, len(loop.buffer))  # so that nothing cancels
    batch = replace(loop.buffer.examples, advantage=uneven)
    texts = loop.conditioning[batch.prompt]
    policy = loop.sampler.policy(batch.latents, batch.step, texts)
    reference = loop.sampler.reference(batch.latents, batch.step, texts)
    log_prob = policy.log_prob(batch.next_latents)
    moved = (log_prob - batch.log_prob).exp() - 1
    assert moved.min() < -1e-3  # on both sides of the band, where the forms differ
    assert moved.max() > 1e-3
    expected = dpok_loss(
        log_prob,
        batch.log_prob,
        batch.advantage.clamp(-0.7, 0.7),
        policy.kl(reference, kl),
        **settings,
    )
    loss = loop.objective.loss(batch).loss
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    for other in (dict(alpha=1.0), dict(beta=0.01), dict(ratio_clip=1e-2)):
        changed = dpok_loss(
            log_prob,
            batch.log_prob,
            batch.advantage.clamp(-0.7, 0.7),
            policy.kl(reference, kl),
            **settings | other,
        )
        assert changed.loss.item() != pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("kl", ["epsilon", "gaussian"])
@pytest.mark.parametrize(
    ("beta", "fraction", "measured"), [(0.0, 1.0, 1), (0.0, 0.01, 1), (0.5, 0.25, 2), (0.5, 1.0, 9)]
)
def test_the_kl_is_of_some_transitions(
    beta, fraction, measured, kl, rl_loop, make_model, make_config, green, shake
):
    """They alone go through the reference; without beta the loss has nothing of it."""
    config = make_config(
        beta=beta,
        kl_fraction=fraction,
        kl=kl,
        samples_per_round=9,
        batch_size=9,
        updates_per_round=1,
    )
    loop = rl_loop(config, make_model(**GENTLE), green)
    loop.advance(1)
    shake(loop.sampler.model, size=0.02)
    batch = loop.buffer.examples[torch.arange(9)]
    before = loop.session.denoiser.evaluations
    found = loop.objective.loss(batch)
    assert loop.session.denoiser.evaluations - before == 9 + measured
    rows = torch.arange(measured)
    texts = loop.conditioning[batch.prompt[rows]]
    policy, reference = (
        draw(batch.latents[rows], batch.step[rows], texts)
        for draw in (loop.sampler.policy, loop.sampler.reference)
    )
    expected = policy.kl(reference, kl).mean().item()
    assert found.measured["kl"].item() == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-6
    config = make_config(beta=beta, kl_fraction=fraction, kl=kl, alpha=1e-30)
    small = rl_loop(config, loop.sampler.model, green)  # with a new adapter, which changes nothing
    shake(loop.sampler.model, size=0.02)
    found = small.objective.loss(batch)
    divergence = found.measured["kl"].item()
    assert divergence > 1e-6
    assert found.loss.item() == pytest.approx(beta * divergence, abs=1e-20)


def test_the_kl_in_the_reward(rl_loop, make_model, make_config, constant, shake):
    """The reward of an image that the policy draws more often than the reference is lowered."""
    config = make_config(kl_in="reward", beta=0.25, advantage="reward", alpha=1e-30)
    loop = rl_loop(config, make_model(**GENTLE), constant(2.0))
    shake(loop.sampler.model, size=0.1)
    drawn, scores, _ = loop.roll_out(draw := loop.draw(1))
    assert drawn.log_ratio.abs().min() > 0.01
    assert scores.total.tolist() == [2.0] * 4  # what is reported
    loop.keep_examples(1, draw, drawn, scores)
    seen = loop.buffer.examples
    expected = (2 - 0.25 * drawn.log_ratio).repeat_interleave(len(seen) // 4)
    torch.testing.assert_close(seen.reward, expected)
    assert torch.equal(seen.advantage, seen.reward)
    found = loop.objective.loss(seen)
    assert found.measured["kl"] > 1e-6
    assert found.loss.abs() < 1e-20  # and the loss has nothing of it


# --------------------------------------------------------------------------------------- advantages


def test_the_raw_reward_as_advantage(rl_loop, model, make_config, green):
    loop = rl_loop(make_config(advantage="reward"), model, green)
    loop.advance(1)
    assert torch.equal(loop.buffer.examples.advantage, loop.buffer.examples.reward)
    assert loop.buffer.examples.reward.unique().numel() == 4


def test_the_advantage_among_the_samples_of_a_prompt(rl_loop, model, make_config, green):
    loop = rl_loop(make_config(advantage="prompt", timestep_fraction=1.0), model, green)
    loop.advance(1)
    # two samples of each of two prompts, from one x_T: one is better, one is worse
    seen = loop.buffer.examples
    for row in (0, 1):
        values = set(seen.advantage[seen.prompt == row].round(decimals=2).tolist())
        assert values == {-1.0, 1.0}
        first, second = seen.latents[(seen.prompt == row) & (seen.step == 0)]
        assert torch.equal(first, second)


def test_the_advantage_over_the_value(rl_loop, model, make_config, constant):
    """A value function that expects just what comes leaves nothing to learn."""
    config = make_config(advantage="value", beta=0.0, value_learning_rate=1e-9)
    loop = rl_loop(config, model, constant(2.0))

    class Expecting(ValueFunction):
        def __init__(self, value):
            super().__init__(4, 16)
            self.expected = torch.nn.Parameter(torch.tensor(value))

        def forward(self, latents, prompts, timesteps):
            assert len(latents) == len(prompts) == len(timesteps)
            return self.expected.expand(len(latents))

    loop.advantage.value = Expecting(2.0)
    assert loop.advance(1)["grad_norm"] == 0
    loop.advantage.value = Expecting(1.5)
    assert loop.update(2)["loss"] == pytest.approx(-0.5, abs=1e-2)


def test_the_value_function_is_fitted(model, make_config, constant):
    config = make_config(
        rounds=3, advantage="value", value_updates=20, value_learning_rate=3e-3, learning_rate=1e-9
    )
    records = train(config, model, constant(2.0))
    losses = [record["value_loss"] for record in records]
    assert losses[0] > 5 * losses[-1]
    assert "value_loss" not in train(make_config(rounds=1), model, constant(2.0))[0]


def test_the_value_function_is_fitted_as_the_settings_say(
    rl_loop, make_model, make_config, green, monkeypatch
):
    settings = dict(advantage="value", value_updates=3, value_batch_size=5, timestep_fraction=1.0)

    def start(**changes):
        return rl_loop(make_config(**settings | changes), make_model(**GENTLE), green)

    first, again, other = start(), start(), start(seed=1)
    weights = [
        torch.cat([p.flatten() for p in each.advantage.value.parameters()])
        for each in (first, again, other)
    ]
    assert torch.equal(weights[0], weights[1])  # by the run's seed, and by nothing else
    assert not torch.equal(weights[0], weights[2])

    loop, rows = start(value_learning_rate=0.03), []
    original = ValueFunction.forward

    def forward(self, latents, *others):
        rows.append((len(latents), torch.is_grad_enabled()))
        return original(self, latents, *others)

    monkeypatch.setattr(ValueFunction, "forward", forward)
    loop.advance(1)
    fitted = [count for count, with_gradient in rows if with_gradient]
    assert len(loop.buffer) == 16
    assert fitted == [5, 5, 5]
    assert loop.advantage.optimizer.param_groups[0]["lr"] == 0.03


@pytest.mark.parametrize(("clip", "loss"), [(0.0, -100.0), (5.0, -5.0)])
def test_advantages_are_clipped(model, make_config, clip, loss, constant):
    """At a ratio of 1 and on the reference, the loss is minus alpha times the advantage."""
    config = make_config(rounds=1, updates_per_round=1, advantage="reward", advantage_clip=clip)
    (record,) = train(config, model, constant(100.0))
    assert record["loss"] == pytest.approx(loss, rel=1e-5)
    assert record["kl"] == 0


def test_equal_rewards_move_nothing(model, make_config, constant):
    (record,) = train(make_config(rounds=1, updates_per_round=1), model, constant(20.1))
    assert record["grad_norm"] == 0


# --------------------------------------------------------------------------- prompts, seeds, buffer


def test_prompts_take_turns_and_seeds_never_return(rl_loop, model, make_config, green):
    config = make_config(prompts=("a", "b", "c"), samples_per_round=8, group_size=1)
    loop = rl_loop(config, model, green)
    drawn = [loop.draw(number) for number in range(1, 30)]
    for prompt, seeds, starts in drawn:
        assert starts == seeds
        counts = prompt.bincount(minlength=3).tolist()
        assert sorted(counts) == [2, 3, 3]
        assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed for _, seeds, _ in drawn for seed in seeds}) == 29 * 8
    again = loop.draw(7)
    assert torch.equal(again[0], drawn[6][0])
    assert again[1:] == drawn[6][1:]
    short = dict(prompts=("a", "b", "c"), samples_per_round=2, group_size=1)
    few = rl_loop(make_config(**short), model, green)
    rows = torch.cat([few.draw(number)[0] for number in range(60)])
    assert all(count > 20 for count in rows.bincount(minlength=3).tolist())


def test_every_draw_has_a_seed_of_its_run_its_round_and_its_purpose(
    rl_loop, make_model, make_config, green, monkeypatch
):
    orders, original = [], Buffer.minibatches

    def minibatches(self, batch_size, seed):
        orders.append(seed)
        return original(self, batch_size, seed)

    monkeypatch.setattr(Buffer, "minibatches", minibatches)
    drawn = []
    for seed in (0, 1):
        config = make_config(advantage="value", value_updates=1, seed=seed)
        loop = rl_loop(config, make_model(), green)
        for number in (1, 2):
            loop.advance(number)
            drawn += loop.draw(number).seeds
    assert len({*orders}) == len(orders) == 2 * 2 * 2  # value function and policy
    assert len({*drawn}) == len(drawn) == 2 * 2 * 4


def test_the_negative_prompt_is_that_of_the_settings(rl_loop, model, make_config, green):
    config = make_config(guidance_scale=3.0, negative_prompt="blurred")
    negative = rl_loop(config, model, green).conditioning.negative
    assert torch.equal(negative.embeds, model.encode([], "blurred").negative.embeds)
    assert not torch.equal(negative.embeds, model.encode([], "").negative.embeds)


def test_groups_share_their_prompt_and_their_first_noise(rl_loop, model, make_config, green):
    config = make_config(prompts=("a", "b", "c"), samples_per_round=10, group_size=4)
    prompt, seeds, starts = rl_loop(config, model, green).draw(1)
    assert starts == [seeds[0]] * 4 + [seeds[4]] * 4 + [seeds[8]] * 2
    assert len(set(seeds)) == 10
    rows = prompt.tolist()
    assert rows == [rows[0]] * 4 + [rows[4]] * 4 + [rows[8]] * 2
    assert sorted({rows[0], rows[4], rows[8]}) == [0, 1, 2]


@pytest.mark.parametrize("advantage", ["reward", "value"])
def test_there_are_groups_only_where_they_are_compared(
    rl_loop, model, make_config, green, advantage
):
    config = make_config(samples_per_round=4, group_size=4, advantage=advantage)
    _, seeds, starts = rl_loop(config, model, green).draw(1)
    assert starts == seeds


def test_other_random_steps_are_trained_on_in_every_round(rl_loop, model, make_config, green):
    loop = rl_loop(make_config(updates_per_round=1, timestep_choice="random"), model, green)
    taken = []
    for number in (1, 2, 3):
        loop.advance(number)
        taken.append(tuple(loop.buffer.examples.step.tolist()))
    assert len(set(taken)) == 3


def test_every_image_is_scored_for_its_own_prompt(rl_loop, model, make_config):
    class Rabbit(RewardModel):
        name = "rabbit"
        seen: tuple = ()

        def score_batch(self, images, prompts):
            self.seen += tuple(prompts)
            return torch.tensor([float("rabbit" in prompt) for prompt in prompts])

    reward = Rabbit()
    loop = rl_loop(make_config(advantage="reward"), model, WeightedReward([(reward, 1.0)]))
    loop.advance(1)
    assert sorted(reward.seen) == sorted(make_config().prompts * 2)
    assert torch.equal(loop.buffer.examples.reward, (loop.buffer.examples.prompt == 0).float())


def test_the_buffer_keeps_its_size_and_the_newest(rl_loop, make_model, make_config, green):
    config = make_config(
        buffer_size=20,
        timestep_fraction=1.0,
        updates_per_round=1,
        batch_size=20,
        learning_rate=5e-2,
        advantage="reward",
    )
    loop = rl_loop(config, make_model(**GENTLE), green)
    loop.advance(1)
    assert len(loop.buffer.examples) == loop.buffer.fresh == 16
    first = loop.buffer.examples
    record = loop.advance(2)
    assert len(loop.buffer.examples) == 20
    assert loop.buffer.fresh == 16
    assert torch.equal(loop.buffer.examples.latents[16:], first.latents[:4])
    assert not torch.equal(loop.buffer.examples.latents[:4], first.latents[:4])
    # all 20 were in the first update: 16 at a ratio of 1, and 4 that an older policy drew
    assert record["ratio/first_max_dev"] <= 1e-6
    assert abs(record["ratio/mean"] - 1) > 1e-5


@pytest.mark.parametrize("buffer_size", [0, 5])
def test_a_round_keeps_its_own_transitions_whatever_the_buffer(
    rl_loop, model, make_config, green, buffer_size
):
    loop = rl_loop(make_config(buffer_size=buffer_size), model, green)
    for number in (1, 2):
        loop.advance(number)
        assert len(loop.buffer.examples) == loop.buffer.fresh == 8  # 4 samples, half of 4 steps


def test_a_deterministic_last_step_is_never_trained_on(rl_loop, make_model, make_config, green):
    model = make_model(set_alpha_to_one=True, steps_offset=0)
    loop = rl_loop(make_config(timestep_fraction=1.0, kl="gaussian"), model, green)
    record = loop.advance(1)
    assert sorted(set(loop.buffer.examples.step.tolist())) == [0, 1, 2]
    assert all(math.isfinite(value) for value in record.values())
