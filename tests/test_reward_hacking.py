"""A run that was really trained for a score that can be hacked, under `dpok evaluate`."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput

from dpok_cli import RewardModel


class Green(RewardModel):
    """How much greener than red and blue an image is: had by more green, or by less of the rest."""

    name = "green"

    def score_batch(self, images, prompts):
        red, green, blue = images.mean((2, 3)).unbind(1)
        return green - (red + blue) / 2


class OnlyGreen(RewardModel):
    """What a green that is no hack raises, too."""

    name = "only-green"

    def score_batch(self, images, prompts):
        return images[:, 1].mean((1, 2))


class Purple(RewardModel):
    """What is lost where the others are taken away."""

    name = "purple"

    def score_batch(self, images, prompts):
        return images[:, ::2].mean((1, 2, 3))


REWARDS = (Green, OnlyGreen, Purple)
TRAINING = (
    "--rounds=6 --samples-per-round=16 --sample-batch-size=16 --num-inference-steps=4"
    " --guidance-scale=1 --timestep-fraction=1 --updates-per-round=4 --batch-size=32 --beta=0"
    " --ratio-clip=0.1 --learning-rate=0.01 --lora-rank=4 --evaluation-samples=0 --sample-every=0"
    " --tracker= --device=cpu --name=run --reward=green"
).split()


@pytest.fixture
def fast_learner(pipeline_folder, tmp_path, monkeypatch):
    """A pipeline that learns in a few rounds: every step's noise shows, latents are the images."""
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    noise = {"beta_schedule": "linear", "beta_start": 0.05, "beta_end": 0.05}
    noise |= {"num_train_timesteps": 40, "prediction_type": "v_prediction"}
    file.write_text(json.dumps(json.loads(file.read_text()) | noise))

    def decode(vae, latents):
        colours = (latents * vae.config.scaling_factor)[:, :3].sigmoid()
        return DecoderOutput(sample=2 * colours - 1)

    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    return folder


@pytest.mark.slow
def test_a_hacked_score_brings_the_warning_and_an_honest_rise_does_not(dpok, fast_learner, install):
    install(*REWARDS)
    run = dpok("train-rl", *TRAINING, "--prompt", "a cat", "--model", str(fast_learner))
    assert run.code == 0, run.err

    def evaluate(held_out):
        """Returns the intervals of both changes, the warnings and what was printed."""
        flags = ("--samples=16", "--resamples=500", "--device=cpu", "--reward=green")
        result = dpok("evaluate", *flags, "--reward", held_out, "--output", held_out)
        assert result.code == 0, result.err
        results = json.loads(Path(held_out, "results.json").read_text())
        changes = {
            row["measure"]: (row["difference_low"], row["difference_high"])
            for row in results["rows"]
            if (row["scope"], row["model"]) == ("group", "run")
        }
        return changes["green"], changes[held_out], results["warnings"], result.out

    rise, fall, (warning,), out = evaluate("purple")
    assert min(rise) > 0 > max(fall)
    assert (warning["model"], warning["falling"]) == ("run", ["purple"])
    printed = "Warning: Possible reward hacking by run on seen prompts: purple changes by -"
    assert printed in " ".join(out.split())

    same, risen, warnings, out = evaluate("only-green")
    assert same == rise
    assert min(risen) > 0
    assert warnings == []
    assert "hacking" not in out
