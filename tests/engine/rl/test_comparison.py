"""A round's images of one prompt are compared, in however many batches they were drawn."""

import json

import pytest
import torch

from dpok_cli.engine.distributed import accelerator_for
from dpok_cli.engine.rl.comparison import compare_round
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.errors import RewardError
from dpok_cli.rewards.combined import WeightedReward
from support.rewards import Brightest, Brightness


@pytest.fixture
def accelerator():
    return accelerator_for(torch.device("cpu"), "fp32")


def test_scores_by_hand(accelerator):
    images = (torch.arange(5) / 10).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    reward = WeightedReward([(Brightness(), 1.0), (Brightest(), 1.0)])
    found = compare_round(reward, images, ["a", "b", "a", "b", "a"], accelerator)
    assert {name: values.tolist() for name, values in found.items()} == {
        "brightest": [0.0, 0.0, 0.5, 1.0, 1.0]
    }
    assert compare_round(WeightedReward([(Brightness(), 1.0)]), images, [], accelerator) == {}


def test_a_round_of_training_is_one_comparison(make_config, model, tmp_path):
    config = make_config(
        rounds=2,
        samples_per_round=6,
        group_size=3,
        sample_batch_size=2,
        batch_size=6,
        runs_dir=str(tmp_path),
    )
    compares, run = Brightest(), RunFolder.create(config)
    reward = WeightedReward([(compares, 1.0), (Brightness(), 1.0)])
    list(train_rl(config, model, reward, run))
    assert sorted(compares.groups) == sorted([(prompt, 3) for prompt in config.prompts] * 2)
    for line in run.metrics.read_text().splitlines():
        record = json.loads(line)
        # One of three wins twice and one once, so the mean is 1/2 in every round.
        assert record["reward/brightest"] == pytest.approx(0.5)
        expected = record["reward/brightest"] + record["reward/brightness"]
        assert record["reward/mean"] == pytest.approx(expected, abs=1e-6)


def test_a_failure_has_the_rewards_name(accelerator):
    class Broken(Brightest):
        def score_group(self, images, prompt):
            raise RuntimeError("out of paper")

    reward = WeightedReward([(Broken(), 1.0)])
    with pytest.raises(RewardError, match=r"^brightest: RuntimeError: out of paper$"):
        compare_round(reward, torch.zeros(1, 3, 2, 2), ["a"], accelerator)
