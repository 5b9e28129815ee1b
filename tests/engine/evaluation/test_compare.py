"""Before and after on the same fresh seeds."""

import json

import pytest
import torch

from dpok_cli.config import SampleConfig
from dpok_cli.engine.evaluation.compare import FRESH_SEEDS, compare, diversity
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import sample
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward


class Prompted(RewardModel):
    """1 for rabbits, 0 for the rest."""

    name = "prompted"

    def score_batch(self, images, prompts):
        return torch.tensor([float("rabbit" in prompt) for prompt in prompts])


@pytest.fixture
def tuned(model, shake):
    model.add_adapter(4, 0.0, ["to_q", "to_v", "to_out.0"], seed=0)
    shake(model)
    return model


def test_each_side_is_measured_on_the_same_fresh_seeds(tuned, make_config, green, tmp_path):
    config = make_config(evaluation_samples=5, runs_dir=str(tmp_path))
    run = RunFolder.create(config, "train-rl")
    held_out = WeightedReward([(Prompted(), 1.0)])
    (reward, _) = green.rewards["green"]
    summary = compare(tuned, WeightedReward([(reward, -2.0)]), config, run, held_out)
    assert json.loads(run.summary.read_text()) == summary
    seeds = [FRESH_SEEDS, FRESH_SEEDS + 1, FRESH_SEEDS + 2]  # 5 for two prompts: 3 each
    assert summary["seeds"] == seeds
    assert summary["prompts"] == list(config.prompts)

    def measured():
        drawing = make_config(SampleConfig)
        drawn = [one.image for one in sample(tuned, config.prompts, seeds, drawing)]
        images = torch.stack(drawn)
        score = reward.score(images, ["-"] * 6).mean().item()
        return {
            "reward": -2 * score,
            "green": score,
            "prompted": 0.5,
            "diversity": (diversity(images[:3]) + diversity(images[3:])) / 2,
        }

    assert summary["after"] == pytest.approx(measured(), abs=1e-5)
    with tuned.reference():
        assert summary["before"] == pytest.approx(measured(), abs=1e-5)
    assert abs(summary["after"]["green"] - summary["before"]["green"]) > 1e-4


def test_nothing_is_drawn_for_no_samples(tuned, make_config, green):
    summary = compare(tuned, green, make_config(evaluation_samples=0))
    assert summary == {"seeds": [], "prompts": ["a green rabbit", "two cats"]}
    assert tuned.unet_rows == 0


def test_diversity_is_the_mean_distance_of_pairs():
    black, white = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    assert diversity(torch.stack([black, white])) == pytest.approx(1.0)
    # pairs: black-black 0, black-white 1 twice
    assert diversity(torch.stack([black, black, white])) == pytest.approx(2 / 3)
    assert diversity(torch.stack([white, white])) == 0.0
    assert diversity(white[None]) == 0.0
    half = black.clone()
    half[0] = 1  # one channel of three: root of a third
    assert diversity(torch.stack([black, half])) == pytest.approx((1 / 3) ** 0.5)
