"""DPOK's loop on a tiny model: what it yields, keeps and learns, and what stops it."""

import json
import math
import warnings
from collections.abc import Generator

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dpok_cli.config import SampleConfig, TrainRLConfig
from dpok_cli.engine.advantage import ValueFunction
from dpok_cli.engine.model import load
from dpok_cli.engine.policy import epsilon_kl, gaussian_kl
from dpok_cli.engine.run import RunFolder
from dpok_cli.engine.sample import sample
from dpok_cli.engine.source import ADAPTER_FILE
from dpok_cli.engine.train_rl import RLTrainer, train_rl
from dpok_cli.errors import InputError, RewardError, TrainingError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward

# Noise from which an untrained UNet does not amplify latents far beyond what real ones are.
GENTLE = dict(beta_end=0.004)


def adapter(model):
    parameters = model.adapter_parameters()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def train(config, model, reward, run=None):
    return list(train_rl(config, model, reward, run))


class Constant(RewardModel):
    """A number, whatever is shown."""

    name = "constant"

    def __init__(self, value):
        super().__init__()
        self.value = value

    def score_batch(self, images, prompts):
        return torch.full((len(images),), self.value)


class Breaking(Constant):
    """Good for ``rounds`` rounds; then ``value``."""

    name = "breaking"

    def __init__(self, value, rounds=1):
        super().__init__(value)
        self.left = rounds

    def score_batch(self, images, prompts):
        if self.left:
            self.left -= 1
            return images.mean(dim=(1, 2, 3))
        if isinstance(self.value, Exception):
            raise self.value
        return super().score_batch(images, prompts)


def buffer(trainer):
    assert trainer.buffer is not None
    return trainer.buffer


def only(reward, weight=1.0):
    return WeightedReward([(reward, weight)])


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


LEARNING = dict(
    samples_per_round=16,
    sample_batch_size=16,
    timestep_fraction=1.0,
    updates_per_round=4,
    batch_size=32,
    ratio_clip=0.1,
)


# --------------------------------------------------------------------------------------- metrics


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
        "unet_rows",
    } <= first.keys()
    assert first.keys() == second.keys()
    assert all(math.isfinite(value) for value in (*first.values(), *second.values()))
    assert (first["round"], second["round"]) == (1, 2)
    assert (first["samples"], second["samples"]) == (4, 8)
    # 4 samples of 4 steps, then 2 updates of 4 transitions by policy and reference
    assert (first["unet_rows"], second["unet_rows"]) == (32, 64)
    assert first["reward/green"] == first["reward/mean"]
    assert first["reward/std"] > 0
    assert first["grad_norm"] > 0
    assert first["kl"] < second["kl"]


def test_a_weighted_reward_is_measured_in_whole_and_in_parts(model, make_config, green):
    parts = [*green.rewards.values(), (Constant(3.0), -2.0)]
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


# ------------------------------------------------------------------------------------ repeatable


def test_the_same_seed_gives_the_same_adapter(make_model, make_config, green):
    def trained(seed):
        model = make_model()
        torch.rand(100)  # the world's own random numbers do not matter
        records = train(make_config(seed=seed, advantage="value"), model, green)
        return adapter(model), [record["reward/mean"] for record in records]

    (first, rewards), (again, same_rewards), (other, _) = trained(0), trained(0), trained(1)
    assert torch.equal(first, again)
    assert rewards == same_rewards
    assert not torch.equal(first, other)


def test_gradient_checkpointing_changes_nothing(make_model, make_config, green):
    def trained(**changes):
        model = make_model()
        train(make_config(**changes), model, green)
        return model

    plain, checkpointed = trained(), trained(gradient_checkpointing=True)
    assert checkpointed.pipeline.unet.is_gradient_checkpointing
    assert not plain.pipeline.unet.is_gradient_checkpointing
    torch.testing.assert_close(adapter(checkpointed), adapter(plain), rtol=0, atol=1e-6)
    assert adapter(plain).abs().max() > 0


def test_accumulated_micro_batches_are_one_large_batch(make_model, make_config, green):
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
        return adapter(model), record

    whole, record = trained(batch_size=16)
    parts, record_of_parts = trained(batch_size=4, gradient_accumulation=4)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    untrained = make_model()
    untrained.add_adapter(4, 0.0, make_config().lora_targets, seed=0)
    assert (whole - adapter(untrained)).abs().max() > 5e-5
    # Adam does not see the gradient's scale; its norm does
    for key in ("grad_norm", "loss", "kl"):
        assert record_of_parts[key] == pytest.approx(record[key], rel=1e-4, abs=1e-6), key


def test_every_update_has_a_gradient_of_its_own(make_model, make_config, green):
    """So slow that all updates on the same batch are the same."""

    def norm(updates):
        config = make_config(rounds=1, updates_per_round=updates, batch_size=8, learning_rate=1e-12)
        return train(config, make_model(), green)[0]["grad_norm"]

    assert norm(3) == pytest.approx(norm(1), rel=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("kl", ["epsilon", "gaussian"])
def test_the_kl_is_of_the_form_asked_for(model, shake, make_config, green, kl, guidance_scale):
    trainer = RLTrainer(make_config(kl=kl, guidance_scale=guidance_scale), model, green, None)
    trainer.round(1)
    shake(model)
    batch, denoising = buffer(trainer), trainer.denoising

    def output():
        timesteps, embeds = denoising.timesteps[batch.step], trainer.conditioning[batch.prompt]
        with torch.no_grad():
            return model.predict(batch.latents, timesteps, embeds, guidance_scale)

    policy = output()
    with model.reference():
        frozen = output()
    if kl == "gaussian":
        mean, std = denoising.distribution(policy, batch.latents, batch.step)
        expected = gaussian_kl(
            mean, denoising.distribution(frozen, batch.latents, batch.step)[0], std
        )
    else:
        expected = epsilon_kl(policy, frozen)
    assert trainer.loss(batch).kl.item() == pytest.approx(expected.mean().item(), rel=1e-4)
    assert expected.mean() > 1e-3


# -------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_the_reward_rises(learner, make_config, green, weight):
    model = learner()
    config = make_config(rounds=6, beta=0.0, **LEARNING)
    (reward, _) = green.rewards["green"]
    train(config, model, only(reward, weight))

    def score():
        drawn = [one.image for one in sample(model, config.prompts, range(8), config)]
        return reward.score(torch.stack(drawn), ["-"] * 16)

    after = score()
    with model.reference():
        before = score()
    rise = weight * (after - before)
    assert rise.mean() > before.std()
    assert rise.min() > 0


@pytest.mark.parametrize("kl", ["epsilon", "gaussian"])
def test_beta_keeps_the_adapter_near_the_reference(learner, make_config, green, kl):
    """A hundred times the default beta, against none."""

    def divergence(beta):
        config = make_config(rounds=4, beta=beta, kl=kl, **LEARNING)
        return train(config, learner(), green)[-1]["kl"]

    assert divergence(100 * TrainRLConfig().beta) < divergence(0.0) / 5


def test_a_v_prediction_pipeline_trains(build, make_config, green, tmp_path):
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
        assert adapter(model).isfinite().all()
        assert records[-1]["kl"] > 0


# ------------------------------------------------------------------------------------ advantages


def test_the_raw_reward_as_advantage(model, make_config, green):
    trainer = RLTrainer(make_config(advantage="reward"), model, green, None)
    trainer.round(1)
    assert torch.equal(buffer(trainer).advantage, buffer(trainer).reward)
    assert buffer(trainer).reward.unique().numel() == 4


def test_the_advantage_among_the_samples_of_a_prompt(model, make_config, green):
    trainer = RLTrainer(make_config(advantage="prompt", timestep_fraction=1.0), model, green, None)
    trainer.round(1)
    # two samples of each of two prompts, from one x_T: one is better, one is worse
    seen = buffer(trainer)
    for row in (0, 1):
        values = set(seen.advantage[seen.prompt == row].round(decimals=2).tolist())
        assert values == {-1.0, 1.0}
        first, second = seen.latents[(seen.prompt == row) & (seen.step == 0)]
        assert torch.equal(first, second)


def test_the_advantage_over_the_value(model, make_config):
    """A value function that expects just what comes leaves nothing to learn."""
    config = make_config(advantage="value", beta=0.0, value_learning_rate=1e-9)
    trainer = RLTrainer(config, model, only(Constant(2.0)), None)

    class Expecting(ValueFunction):
        def __init__(self, value):
            super().__init__(4, 16)
            self.expected = torch.nn.Parameter(torch.tensor(value))

        def forward(self, latents, prompt_embeds, timesteps):
            assert len(latents) == len(prompt_embeds) == len(timesteps)
            return self.expected.expand(len(latents))

    trainer.value = Expecting(2.0)
    assert trainer.round(1)["grad_norm"] == 0
    trainer.value = Expecting(1.5)
    assert trainer.update(2)["loss"] == pytest.approx(-0.5, abs=1e-2)


def test_the_value_function_is_fitted(model, make_config):
    config = make_config(
        rounds=3, advantage="value", value_updates=20, value_learning_rate=3e-3, learning_rate=1e-9
    )
    records = train(config, model, only(Constant(2.0)))
    losses = [record["value_loss"] for record in records]
    assert losses[0] > 5 * losses[-1]
    assert "value_loss" not in train(make_config(rounds=1), model, only(Constant(2.0)))[0]


@pytest.mark.parametrize(("clip", "loss"), [(0.0, -100.0), (5.0, -5.0)])
def test_advantages_are_clipped(model, make_config, clip, loss):
    """At a ratio of 1 and on the reference, the loss is minus alpha times the advantage."""
    config = make_config(rounds=1, updates_per_round=1, advantage="reward", advantage_clip=clip)
    (record,) = train(config, model, only(Constant(100.0)))
    assert record["loss"] == pytest.approx(loss, rel=1e-5)
    assert record["kl"] == 0


def test_equal_rewards_move_nothing(model, make_config):
    (record,) = train(make_config(rounds=1, updates_per_round=1), model, only(Constant(20.1)))
    assert record["grad_norm"] == 0


# ------------------------------------------------------------------------- prompts, seeds, buffer


def test_prompts_take_turns_and_seeds_never_return(model, make_config, green):
    config = make_config(prompts=("a", "b", "c"), samples_per_round=8, group_size=1)
    trainer = RLTrainer(config, model, green, None)
    drawn = [trainer.draw(number) for number in range(1, 30)]
    for prompt, seeds, starts in drawn:
        assert starts == seeds
        counts = prompt.bincount(minlength=3).tolist()
        assert sorted(counts) == [2, 3, 3]
        assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed for _, seeds, _ in drawn for seed in seeds}) == 29 * 8
    again = trainer.draw(7)
    assert torch.equal(again[0], drawn[6][0])
    assert again[1:] == drawn[6][1:]
    short = dict(prompts=("a", "b", "c"), samples_per_round=2, group_size=1)
    few = RLTrainer(make_config(**short), model, green, None)
    rows = torch.cat([few.draw(number)[0] for number in range(60)])
    assert all(count > 20 for count in rows.bincount(minlength=3).tolist())


def test_groups_share_their_prompt_and_their_first_noise(model, make_config, green):
    config = make_config(prompts=("a", "b", "c"), samples_per_round=10, group_size=4)
    prompt, seeds, starts = RLTrainer(config, model, green, None).draw(1)
    assert starts == [seeds[0]] * 4 + [seeds[4]] * 4 + [seeds[8]] * 2
    assert len(set(seeds)) == 10
    rows = prompt.tolist()
    assert rows == [rows[0]] * 4 + [rows[4]] * 4 + [rows[8]] * 2
    assert sorted({rows[0], rows[4], rows[8]}) == [0, 1, 2]


@pytest.mark.parametrize("advantage", ["reward", "value"])
def test_there_are_groups_only_where_they_are_compared(model, make_config, green, advantage):
    config = make_config(samples_per_round=4, group_size=4, advantage=advantage)
    _, seeds, starts = RLTrainer(config, model, green, None).draw(1)
    assert starts == seeds


def test_other_random_steps_are_trained_on_in_every_round(model, make_config, green):
    trainer = RLTrainer(
        make_config(updates_per_round=1, timestep_choice="random"), model, green, None
    )
    taken = []
    for number in (1, 2, 3):
        trainer.round(number)
        taken.append(tuple(buffer(trainer).step.tolist()))
    assert len(set(taken)) == 3


def test_every_image_is_scored_for_its_own_prompt(model, make_config):
    class Rabbit(Constant):
        name = "rabbit"
        seen: tuple = ()

        def score_batch(self, images, prompts):
            self.seen += tuple(prompts)
            return torch.tensor([float("rabbit" in prompt) for prompt in prompts])

    reward = Rabbit(0.0)
    trainer = RLTrainer(make_config(advantage="reward"), model, only(reward), None)
    trainer.round(1)
    assert sorted(reward.seen) == sorted(make_config().prompts * 2)
    assert torch.equal(buffer(trainer).reward, (buffer(trainer).prompt == 0).float())


def test_the_buffer_keeps_its_size_and_the_newest(make_model, make_config, green):
    config = make_config(
        buffer_size=20,
        timestep_fraction=1.0,
        updates_per_round=1,
        batch_size=20,
        learning_rate=5e-2,
        advantage="reward",
    )
    trainer = RLTrainer(config, make_model(**GENTLE), green, None)
    trainer.round(1)
    assert len(buffer(trainer)) == trainer.fresh == 16
    first = buffer(trainer)
    record = trainer.round(2)
    assert len(buffer(trainer)) == 20
    assert trainer.fresh == 16
    assert torch.equal(buffer(trainer).latents[16:], first.latents[:4])
    assert not torch.equal(buffer(trainer).latents[:4], first.latents[:4])
    # all 20 were in the first update: 16 at a ratio of 1, and 4 that an older policy drew
    assert record["ratio/first_max_dev"] <= 1e-6
    assert abs(record["ratio/mean"] - 1) > 1e-5


@pytest.mark.parametrize("buffer_size", [0, 5])
def test_a_round_keeps_its_own_transitions_whatever_the_buffer(
    model, make_config, green, buffer_size
):
    trainer = RLTrainer(make_config(buffer_size=buffer_size), model, green, None)
    for number in (1, 2):
        trainer.round(number)
        assert len(buffer(trainer)) == trainer.fresh == 8  # 4 samples, half of 4 steps


def test_a_deterministic_last_step_is_never_trained_on(make_model, make_config, green):
    model = make_model(set_alpha_to_one=True, steps_offset=0)
    trainer = RLTrainer(make_config(timestep_fraction=1.0, kl="gaussian"), model, green, None)
    record = trainer.round(1)
    assert sorted(set(buffer(trainer).step.tolist())) == [0, 1, 2]
    assert all(math.isfinite(value) for value in record.values())


# --------------------------------------------------------------------------------- the run folder


def test_the_run_folder(model, make_config, green, tmp_path):
    config = make_config(
        runs_dir=str(tmp_path), name="one", rounds=3, sample_every=2, sample_count=4
    )
    run = RunFolder.create(config, "train-rl")
    records = train(config, model, green, run)
    assert run.history() == records
    assert [json.loads(line)["round"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3]
    names = [f"round-0000{number}.png" for number in (0, 2, 3)]
    assert sorted(file.name for file in run.samples.iterdir()) == names
    with Image.open(run.samples / names[0]) as before, Image.open(run.samples / names[2]) as after:
        # two prompts, two seeds each, of 16 pixels and a gap of 2, all enlarged 12 times
        assert before.size == after.size == (12 * 34, 12 * 34)
        assert before.tobytes() != after.tobytes()
    # drawing grids is no training
    assert records[-1]["unet_rows"] == 3 * 32
    # the grid is what `sample` draws
    load_again = load(config, run.adapter)
    assert torch.equal(adapter(load_again), adapter(model))


def test_the_adapter_of_a_run_draws_the_same_images_in_diffusers(
    pipeline_folder, make_config, green, tmp_path
):
    config = make_config(runs_dir=str(tmp_path), lora_alpha=12.0, learning_rate=5e-2)
    model = load(config)
    run = RunFolder.create(config, "train-rl")
    train(config, model, green, run)
    drawing = make_config(SampleConfig, prompts=("two cats",), guidance_scale=3.0)
    ours = torch.stack([one.image for one in sample(model, drawing.prompts, range(3), drawing)])
    with model.reference():
        base = torch.stack([one.image for one in sample(model, drawing.prompts, range(3), drawing)])
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(run.adapter)
    theirs = pipeline(
        ["two cats"] * 3,
        num_inference_steps=4,
        guidance_scale=3.0,
        eta=1.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(3)],
        output_type="pt",
    ).images
    assert (ours - base).abs().max() > 2 / 255
    assert (ours - theirs).abs().max() <= 1 / 255


def test_tensorboard_events_are_written(model, make_config, green, tmp_path):
    config = make_config(runs_dir=str(tmp_path), name="one", rounds=1, tracker="tensorboard")
    run = RunFolder.create(config, "train-rl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(config, model, green, run)
    (events,) = run.path.rglob("events.out.tfevents.*")
    assert b"reward/mean" in events.read_bytes()


def test_a_loop_without_a_run_folder_needs_no_tracker(model, make_config, green):
    """As from a notebook, with the config's defaults."""
    assert len(train(make_config(rounds=1, tracker="tensorboard"), model, green)) == 1


def test_a_run_goes_on_from_the_adapter_it_has(make_model, make_config, green):
    model = make_model()
    train(make_config(), model, green)
    before = adapter(model)
    train(make_config(seed=1, rounds=1), model, green)
    assert adapter(model).shape == before.shape
    assert not torch.equal(adapter(model), before)


def test_drawing_between_rounds_changes_nothing(make_model, make_config, green):
    config = make_config(rounds=2, guidance_scale=3.0, negative_prompt="blurred")
    undisturbed, disturbed = make_model(), make_model()
    train(config, undisturbed, green)
    other = make_config(SampleConfig, prompts=("a cup",), guidance_scale=3.0)
    for _ in train_rl(config, disturbed, green):
        list(sample(disturbed, other.prompts, [0], other))
    torch.testing.assert_close(adapter(disturbed), adapter(undisturbed), rtol=0, atol=1e-6)


def test_a_grid_holds_no_more_images_than_asked_for(model, make_config, green, tmp_path):
    prompts = tuple(f"{number} cats" for number in range(9))
    config = make_config(
        runs_dir=str(tmp_path), rounds=1, prompts=prompts, sample_every=1, sample_count=4
    )
    run = RunFolder.create(config, "train-rl")
    train(config, model, green, run)
    with Image.open(run.samples / "round-00001.png") as picture:
        columns, rows = ((side // 12 + 2) // 18 for side in picture.size)
    assert columns * rows <= 4


# ------------------------------------------------------------------------------------ what stops


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "breaking: returned nan for '"),
        (float("inf"), "breaking: returned inf for '"),
        (OSError("the network is gone"), "breaking: OSError: the network is gone"),
    ],
)
def test_a_broken_reward_stops_the_run_in_its_name(model, make_config, tmp_path, value, said):
    config = make_config(runs_dir=str(tmp_path), rounds=5, sample_every=1)
    run = RunFolder.create(config, "train-rl")
    loop = train_rl(config, model, only(Breaking(value, rounds=2)), run)
    records = [next(loop), next(loop)]
    with pytest.raises(RewardError) as raised:
        next(loop)
    assert str(raised.value).startswith(said)
    assert run.history() == records
    assert torch.equal(adapter(load(config, run.adapter)), adapter(model))


def test_what_was_reached_is_kept_when_a_reward_breaks(model, make_config, tmp_path):
    config = make_config(runs_dir=str(tmp_path), rounds=5, sample_every=0)
    run = RunFolder.create(config, "train-rl")
    with pytest.raises(RewardError):
        train(config, model, only(Breaking(float("nan"), rounds=2)), run)
    assert (run.adapter / ADAPTER_FILE).is_file()
    kept = load_file(run.adapter / ADAPTER_FILE)
    assert sum(weight.numel() for weight in kept.values()) == adapter(model).numel()


def test_what_was_reached_is_kept_when_the_person_stops(model, make_config, green, tmp_path):
    config = make_config(runs_dir=str(tmp_path), rounds=5, sample_every=0)
    run = RunFolder.create(config, "train-rl")
    loop = train_rl(config, model, green, run)
    next(loop)
    assert isinstance(loop, Generator)
    loop.close()
    assert (run.adapter / ADAPTER_FILE).is_file()


def test_a_loss_without_bounds_stops_the_run(model, make_config, tmp_path):
    changes = dict(alpha=1e38, advantage="reward", advantage_clip=0.0, updates_per_round=20)
    config = make_config(runs_dir=str(tmp_path), **changes)
    run = RunFolder.create(config, "train-rl")
    model.add_adapter(4, 0.0, config.lora_targets, seed=0)
    before = adapter(model)
    with pytest.raises(TrainingError, match="20 times in a row.* Lower --learning-rate"):
        train(config, model, only(Constant(1e3)), run)
    assert torch.equal(adapter(model), before)  # nothing broken got in


def test_a_gradient_without_bounds_stops_the_run(model, make_config):
    """The loss is finite, its gradient is not."""
    changes = dict(alpha=1e36, advantage="reward", advantage_clip=0.0, updates_per_round=20)
    config = make_config(rounds=1, **changes)
    model.add_adapter(4, 0.0, config.lora_targets, seed=0)
    with pytest.raises(TrainingError):
        train(config, model, only(Constant(1e2)))
    assert adapter(model).isfinite().all()


def test_broken_images_are_not_blamed_on_the_reward(model, make_config, green):
    model.add_adapter(4, 0.0, make_config().lora_targets, seed=0)
    for parameter in model.adapter_parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(TrainingError):
        train(make_config(rounds=1), model, green)


@pytest.mark.parametrize(
    ("changes", "scheduler"),
    [
        (dict(num_inference_steps=1), dict(set_alpha_to_one=True, steps_offset=0)),
        (dict(eta=1e-5), {}),
    ],
)
def test_no_stochastic_step_is_refused(make_model, make_config, green, changes, scheduler):
    with pytest.raises(InputError, match="eta|num_inference_steps"):
        train(make_config(**changes), make_model(**scheduler), green)


def test_more_steps_than_the_model_was_trained_for_are_refused(model, make_config, green):
    with pytest.raises(InputError, match="num_inference_steps"):
        train(make_config(num_inference_steps=1001), model, green)


def test_no_prompt_is_refused(model, make_config, green):
    with pytest.raises(InputError, match="prompt"):
        train(make_config(prompts=()), model, green)


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_an_adapter_in_float32(make_config, green, precision):
    config = make_config(precision=precision, guidance_scale=3.0)
    model = load(config)
    records = train(config, model, green)
    assert {parameter.dtype for parameter in model.adapter_parameters()} == {torch.float32}
    assert adapter(model).isfinite().all()
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
