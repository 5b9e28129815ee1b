"""Before and after on the same fresh seeds."""

import json

import pytest
import torch

from dpok_cli.config import SampleConfig
from dpok_cli.engine.evaluation import compare as module
from dpok_cli.engine.evaluation.compare import compare
from dpok_cli.engine.evaluation.diversity import diversity, pixel_distance
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.sampling.seeds import FRESH_SEEDS
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.embedding import ImageEmbedding


class Prompted(RewardModel):
    """1 for rabbits, 0 for the rest."""

    name = "prompted"

    def score_batch(self, images, prompts):
        return torch.tensor([float("rabbit" in prompt) for prompt in prompts])


@pytest.fixture
def tuned(model, shake):
    model.adapter.add(4, 0.0, ["to_q", "to_v", "to_out.0"], seed=0)
    shake(model)
    return model


def test_each_side_is_measured_on_the_same_fresh_seeds(tuned, make_config, green, tmp_path):
    config = make_config(evaluation_samples=5, runs_dir=str(tmp_path))
    run = RunFolder.create(config)
    held_out = WeightedReward([(Prompted(), 1.0)])
    (reward, _) = green.rewards["green"]
    summary = compare(tuned, WeightedReward([(reward, -2.0)]), config, run, held_out)
    assert json.loads(run.summary.read_text()) == summary
    seeds = [FRESH_SEEDS, FRESH_SEEDS + 1, FRESH_SEEDS + 2]  # 5 for two prompts: 3 each
    assert summary["seeds"] == seeds
    assert summary["prompts"] == list(config.prompts)

    def measured():
        drawing = make_config(SampleConfig)
        drawn = [one.image for one in Sampler(tuned, drawing).sample(config.prompts, seeds)]
        images = torch.stack(drawn)
        score = reward.score(images, ["-"] * 6).mean().item()
        return {
            "reward": -2 * score,
            "green": score,
            "prompted": 0.5,
            "pixel_distance": (pixel_distance(images[:3]) + pixel_distance(images[3:])) / 2,
        }

    assert summary["after"] == pytest.approx(measured(), abs=1e-5)
    with tuned.reference():
        assert summary["before"] == pytest.approx(measured(), abs=1e-5)
    assert abs(summary["after"]["green"] - summary["before"]["green"]) > 1e-4


def test_nothing_is_drawn_for_no_samples(tuned, make_config, green):
    summary = compare(tuned, green, make_config(evaluation_samples=0))
    assert summary == {"seeds": [], "prompts": ["a green rabbit", "two cats"]}
    assert tuned.denoiser.evaluations == 0


def test_with_a_clip_there_is_a_diversity_and_its_name(tuned, make_config, green, monkeypatch):
    def embed(images):
        assert len(images) <= 2
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)

    embedding = ImageEmbedding("clip", embed)
    monkeypatch.setattr(module, "image_embedding", lambda *_: embedding)
    config = make_config(evaluation_samples=6, sample_batch_size=2)
    summary = compare(tuned, green, config)
    assert summary["diversity_by"] == "clip"
    drawn = Sampler(tuned, config).sample(config.prompts, summary["seeds"])
    images = torch.stack([one.image for one in drawn])
    expected = [diversity(group, embed, 2) for group in images.split(3)]
    assert summary["after"]["diversity"] == pytest.approx(sum(expected) / 2)
