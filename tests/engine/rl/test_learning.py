"""DPOK's loop on a tiny model: that it learns, does so again, and in every precision."""

import pytest
import torch

from dpok_cli.config import SampleConfig
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.rewards.combined import WeightedReward

LEARNING = dict(
    samples_per_round=16,
    sample_batch_size=16,
    timestep_fraction=1.0,
    updates_per_round=4,
    batch_size=32,
    ratio_clip=0.1,
)


def train(config, model, reward):
    return list(train_rl(config, model, reward))


@pytest.fixture
def learner(make_model):
    """Makes models that learn in a few rounds: the noise of every step shows in the latents, and
    the latents are the images."""

    def make():
        model = make_model(
            prediction_type="v_prediction",
            num_train_timesteps=40,
            beta_schedule="linear",
            beta_start=0.05,
            beta_end=0.05,
        )
        model.decode = lambda latents: latents[:, :3].sigmoid()
        return model

    return make


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_the_reward_rises(learner, make_config, green, weight):
    model = learner()
    config = make_config(rounds=6, beta=0.0, **LEARNING)
    (reward, _) = green.rewards["green"]
    train(config, model, WeightedReward([(reward, weight)]))

    def score():
        drawn = [one.image for one in Sampler(model, config).sample(config.prompts, range(8))]
        return reward.score(torch.stack(drawn), ["-"] * 16)

    after = score()
    with model.reference():
        before = score()
    rise = weight * (after - before)
    assert rise.mean() > before.std()
    assert rise.min() > 0


@pytest.mark.parametrize("kl", ["epsilon", "gaussian"])
def test_beta_keeps_the_adapter_near_the_reference(learner, make_config, green, kl):
    def divergence(beta):
        config = make_config(rounds=4, beta=beta, kl=kl, **LEARNING)
        return train(config, learner(), green)[-1]["kl"]

    assert divergence(1.0) < divergence(0.0) / 5


def test_a_v_prediction_pipeline_trains(build, make_config, green, tmp_path, weights):
    """Stable Diffusion 2.1's scheduler, and one with no signal at all in the first step."""
    from diffusers import DDIMScheduler

    noise = dict(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        set_alpha_to_one=False,
        clip_sample=False,
        steps_offset=1,
    )
    for number, more in enumerate(
        ({}, dict(rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    ):
        folder = tmp_path / str(number)
        build(DDIMScheduler(**noise, **more)).save_pretrained(folder)
        config = make_config(model=str(folder), guidance_scale=3.0, batch_size=3, kl="gaussian")
        model = load(config)
        records = train(config, model, green)
        assert all(record["ratio/first_max_dev"] <= 1e-6 for record in records)
        assert weights(model).isfinite().all()
        assert records[-1]["kl"] > 0


def test_a_run_goes_on_from_the_adapter_it_has(make_model, make_config, green, weights):
    model = make_model()
    train(make_config(), model, green)
    before = weights(model)
    train(make_config(seed=1, rounds=1), model, green)
    assert weights(model).shape == before.shape
    assert not torch.equal(weights(model), before)


# --------------------------------------------------------------------------------------- repeatable


def test_the_same_seed_gives_the_same_adapter(make_model, make_config, green, weights):
    def trained(seed):
        model = make_model()
        torch.rand(100)  # the world's own random numbers do not matter
        records = train(make_config(seed=seed, advantage="value"), model, green)
        return weights(model), [record["reward/mean"] for record in records]

    (first, rewards), (again, same_rewards), (other, _) = trained(0), trained(0), trained(1)
    assert torch.equal(first, again)
    assert rewards == same_rewards
    assert not torch.equal(first, other)


def test_gradient_checkpointing_changes_nothing(make_model, make_config, green, weights):
    def trained(**changes):
        model = make_model()
        train(make_config(**changes), model, green)
        return model

    plain, checkpointed = trained(), trained(gradient_checkpointing=True)
    assert checkpointed.pipeline.unet.is_gradient_checkpointing
    assert not plain.pipeline.unet.is_gradient_checkpointing
    torch.testing.assert_close(weights(checkpointed), weights(plain), rtol=0, atol=1e-6)
    assert weights(plain).abs().max() > 0


def test_accumulated_micro_batches_are_one_large_batch(make_model, make_config, green, weights):
    def trained(**changes):
        model = make_model()
        (record,) = train(
            make_config(
                rounds=1,
                timestep_fraction=1.0,
                updates_per_round=1,
                learning_rate=1e-4,
                **changes,
            ),
            model,
            green,
        )
        return weights(model), record

    whole, record = trained(batch_size=16)
    parts, record_of_parts = trained(batch_size=4, gradient_accumulation=4)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    untrained = make_model()
    untrained.adapter.add(4, 0.0, make_config().lora_targets, seed=0)
    assert (whole - weights(untrained)).abs().max() > 5e-5
    # Adam does not see the gradient's scale; its norm does
    for key in ("grad_norm", "loss", "kl"):
        assert record_of_parts[key] == pytest.approx(record[key], rel=1e-4, abs=1e-6), key


def test_every_update_has_a_gradient_of_its_own(make_model, make_config, green):
    """So slow that all updates on the same batch are the same."""

    def norm(updates):
        config = make_config(rounds=1, updates_per_round=updates, batch_size=8, learning_rate=1e-12)
        return train(config, make_model(), green)[0]["grad_norm"]

    assert norm(3) == pytest.approx(norm(1), rel=1e-4)


def test_drawing_between_rounds_changes_nothing(make_model, make_config, green, weights):
    config = make_config(rounds=2, guidance_scale=3.0, negative_prompt="blurred")
    undisturbed, disturbed = make_model(), make_model()
    train(config, undisturbed, green)
    other = make_config(SampleConfig, prompts=("a cup",), guidance_scale=3.0)
    for _ in train_rl(config, disturbed, green):
        list(Sampler(disturbed, other).sample(other.prompts, [0]))
    torch.testing.assert_close(weights(disturbed), weights(undisturbed), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_an_adapter_in_float32(make_config, green, precision, weights):
    config = make_config(precision=precision, guidance_scale=3.0)
    model = load(config)
    records = train(config, model, green)
    assert {parameter.dtype for parameter in model.adapter.parameters()} == {torch.float32}
    assert weights(model).isfinite().all()
    assert all(0 <= record["ratio/first_max_dev"] < 0.05 for record in records)


def test_images_are_decoded_in_float32_whatever_the_precision(make_config, green):
    config = make_config(precision="bf16", rounds=1)
    model = load(config)
    kinds = set()
    model.pipeline.vae.decoder.conv_out.register_forward_hook(
        lambda module, given, out: kinds.add(out.dtype)
    )
    train(config, model, green)
    assert kinds == {torch.float32}


def test_two_precisions_in_one_process(make_config, green):
    for precision in ("fp32", "bf16"):
        config = make_config(precision=precision, rounds=1)
        assert len(train(config, load(config), green)) == 1


def test_the_size_of_a_pass_changes_nothing(make_model, make_config, green, weights):
    def trained(**changes):
        model = make_model()
        sizes = dict(batch_size=2, gradient_accumulation=3, timestep_fraction=1.0)
        list(train_rl(make_config(**sizes | changes), model, green))
        return weights(model)

    plain = trained()
    assert torch.allclose(trained(auto_batch_size=True), plain, atol=1e-5)
    assert not torch.allclose(trained(gradient_accumulation=2), plain, atol=1e-5)
