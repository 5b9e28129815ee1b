"""DPOK's loop on a tiny model: what it leaves in a run folder, and what stops it."""

import json
import warnings
from collections.abc import Generator

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dpok_cli.config import SampleConfig
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.lora.files import ADAPTER_FILE
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.errors import InputError, RewardError, TrainingError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward


def train(config, model, reward, run=None):
    return list(train_rl(config, model, reward, run))


def test_the_run_folder(model, make_config, green, tmp_path, weights):
    config = make_config(
        runs_dir=str(tmp_path), name="one", rounds=3, sample_every=2, sample_count=4
    )
    run = RunFolder.create(config)
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
    assert records[-1]["denoiser_evaluations"] == 3 * 32
    # the grid is what `sample` draws
    load_again = load(config, run.adapter)
    assert torch.equal(weights(load_again), weights(model))


def test_the_adapter_of_a_run_draws_the_same_images_in_diffusers(
    pipeline_folder, make_config, green, tmp_path
):
    config = make_config(runs_dir=str(tmp_path), lora_alpha=12.0, learning_rate=5e-2)
    model = load(config)
    run = RunFolder.create(config)
    train(config, model, green, run)
    drawing = make_config(SampleConfig, prompts=("two cats",), guidance_scale=3.0)
    ours = torch.stack(
        [one.image for one in Sampler(model, drawing).sample(drawing.prompts, range(3))]
    )
    with model.reference():
        base = torch.stack(
            [one.image for one in Sampler(model, drawing).sample(drawing.prompts, range(3))]
        )
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
    run = RunFolder.create(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(config, model, green, run)
    (events,) = run.path.rglob("events.out.tfevents.*")
    assert b"reward/mean" in events.read_bytes()


def test_a_loop_without_a_run_folder_needs_no_tracker(model, make_config, green):
    """As from a notebook, with the config's defaults."""
    assert len(train(make_config(rounds=1, tracker="tensorboard"), model, green)) == 1


def test_a_grid_holds_no_more_images_than_asked_for(model, make_config, green, tmp_path):
    prompts = tuple(f"{number} cats" for number in range(9))
    config = make_config(
        runs_dir=str(tmp_path), rounds=1, prompts=prompts, sample_every=1, sample_count=4
    )
    run = RunFolder.create(config)
    train(config, model, green, run)
    with Image.open(run.samples / "round-00001.png") as picture:
        columns, rows = ((side // 12 + 2) // 18 for side in picture.size)
    assert columns * rows <= 4


# --------------------------------------------------------------------------------------- what stops


class Breaking(RewardModel):
    """Good for ``rounds`` rounds; then ``value``, or raises it."""

    name = "breaking"

    def __init__(self, value, rounds=1):
        super().__init__()
        self.value, self.left = value, rounds

    def score_batch(self, images, prompts):
        if self.left:
            self.left -= 1
            return images.mean(dim=(1, 2, 3))
        if isinstance(self.value, Exception):
            raise self.value
        return torch.full((len(images),), self.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "breaking: returned nan for '"),
        (float("inf"), "breaking: returned inf for '"),
        (OSError("the network is gone"), "breaking: OSError: the network is gone"),
    ],
)
def test_a_broken_reward_stops_the_run_in_its_name(
    model, make_config, tmp_path, value, said, weights
):
    config = make_config(runs_dir=str(tmp_path), rounds=5, sample_every=0)
    run = RunFolder.create(config)
    loop = train_rl(config, model, WeightedReward([(Breaking(value, rounds=2), 1.0)]), run)
    records = [next(loop), next(loop)]
    with pytest.raises(RewardError) as raised:
        next(loop)
    assert str(raised.value).startswith(said)
    assert run.history() == records
    assert torch.equal(weights(load(config, run.adapter)), weights(model))


def test_what_was_reached_is_kept_when_a_reward_breaks(model, make_config, tmp_path, weights):
    config = make_config(runs_dir=str(tmp_path), rounds=5, sample_every=0)
    run = RunFolder.create(config)
    reward = WeightedReward([(Breaking(float("nan"), rounds=2), 1.0)])
    with pytest.raises(RewardError):
        train(config, model, reward, run)
    assert (run.adapter / ADAPTER_FILE).is_file()
    kept = load_file(run.adapter / ADAPTER_FILE)
    assert sum(weight.numel() for weight in kept.values()) == weights(model).numel()


def test_what_was_reached_is_kept_when_the_person_stops(model, make_config, green, tmp_path):
    config = make_config(runs_dir=str(tmp_path), rounds=5, sample_every=0)
    run = RunFolder.create(config)
    loop = train_rl(config, model, green, run)
    next(loop)
    assert isinstance(loop, Generator)
    loop.close()
    assert (run.adapter / ADAPTER_FILE).is_file()


def test_a_loss_without_bounds_stops_the_run(model, make_config, tmp_path, weights, constant):
    changes = dict(alpha=1e38, advantage="reward", advantage_clip=0.0, updates_per_round=20)
    config = make_config(runs_dir=str(tmp_path), **changes)
    run = RunFolder.create(config)
    model.adapter.add(4, 0.0, config.lora_targets, seed=0)
    before = weights(model)
    with pytest.raises(TrainingError, match="20 times in a row.* lower --learning-rate"):
        train(config, model, constant(1e3), run)
    assert torch.equal(weights(model), before)  # nothing broken got in


def test_a_gradient_without_bounds_stops_the_run(model, make_config, weights, constant):
    """The loss is finite, its gradient is not."""
    changes = dict(alpha=1e36, advantage="reward", advantage_clip=0.0, updates_per_round=20)
    config = make_config(rounds=1, **changes)
    with pytest.raises(TrainingError):
        train(config, model, constant(1e2))
    assert weights(model).isfinite().all()


def test_broken_images_are_not_blamed_on_the_reward(model, make_config, green):
    model.pipeline.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(TrainingError):
        train(make_config(rounds=1), model, green)


@pytest.mark.parametrize(
    ("changes", "scheduler", "said"),
    [
        (
            dict(num_inference_steps=1, noise_window=False),
            dict(set_alpha_to_one=True, steps_offset=0),
            "--eta 1.0 and --num-inference-steps 1 leave no step with noise in it, so there is no"
            " policy: raise them.",
        ),
        (
            dict(eta=1e-5, num_inference_steps=3, timestep_fraction=0.5, noise_window=True),
            {},
            "--eta 1e-05 and --num-inference-steps 3 with --timestep-fraction 0.5 leave no step"
            " with noise in it, so there is no policy: raise them, or give --no-noise-window.",
        ),
    ],
)
def test_no_stochastic_step_is_refused(make_model, make_config, green, changes, scheduler, said):
    with pytest.raises(InputError) as error:
        train(make_config(**changes), make_model(**scheduler), green)
    assert str(error.value) == said


def test_more_steps_than_the_model_was_trained_for_are_refused(model, make_config, green):
    with pytest.raises(InputError, match="--num-inference-steps 1001: this model has 999 at most"):
        train(make_config(num_inference_steps=1001), model, green)


def test_no_prompt_is_refused(model, make_config, green):
    with pytest.raises(InputError, match="prompt"):
        train(make_config(prompts=()), model, green)
