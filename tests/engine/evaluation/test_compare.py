"""Before and after on the same fresh seeds."""

import gc
import json
import weakref

import pytest
import torch

from dpok_cli.config import SampleConfig
from dpok_cli.engine.evaluation import compare as module
from dpok_cli.engine.evaluation import diversity as diversity_module
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
    seeds = [FRESH_SEEDS, FRESH_SEEDS + 1, FRESH_SEEDS + 2]
    assert summary["seeds"] == seeds
    assert summary["prompts"] == list(config.prompts)
    assert summary["samples"] == [3, 2]

    def measured():
        drawing = make_config(SampleConfig)
        drawn = [one.image for one in Sampler(tuned, drawing).sample(config.prompts, seeds)]
        images = torch.stack(drawn[:5])  # the second prompt has the first two seeds
        score = reward.score(images, ["-"] * 5).mean().item()
        return {
            "reward": -2 * score,
            "green": score,
            "prompted": 0.6,
            "pixel_distance": (pixel_distance(images[:3]) + pixel_distance(images[3:])) / 2,
        }

    assert summary["after"] == pytest.approx(measured(), abs=1e-5)
    with tuned.reference():
        assert summary["before"] == pytest.approx(measured(), abs=1e-5)
    assert abs(summary["after"]["green"] - summary["before"]["green"]) > 1e-4


def test_nothing_is_drawn_for_no_samples(tuned, make_config, green):
    summary = compare(tuned, green, make_config(evaluation_samples=0))
    assert summary == {"seeds": [], "prompts": [], "samples": []}
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


@pytest.mark.parametrize(
    ("samples", "prompts", "rows"),
    [
        (4, 2, [0, 0, 1, 1]),
        (7, 3, [0, 0, 0, 1, 1, 2, 2]),
        (4, 10, [0, 2, 5, 7]),
        (1, 40, [0]),
        (0, 2, []),
    ],
)
def test_samples_are_spread_over_the_prompts(samples, prompts, rows):
    places = module.spread_out(samples, prompts)
    assert [place.row for place in places] == rows
    for row in set(rows):
        seeds = [place.seed for place in places if place.row == row]
        assert seeds == list(range(FRESH_SEEDS, FRESH_SEEDS + len(seeds)))


def test_fewer_samples_than_prompts_are_that_many_images(tuned, make_config, green, monkeypatch):
    monkeypatch.setattr(module, "image_embedding", lambda *_: pytest.fail("has no use"))
    config = make_config(evaluation_samples=3, prompts=tuple(f"cat {n}" for n in range(9)))
    told = []

    def progress(drawn, total, what):
        for number, one in enumerate(drawn, 1):
            told.append((what, one.prompt, number, total))
            yield one

    summary = compare(tuned, green, config, progress=progress)
    assert summary["prompts"] == ["cat 0", "cat 3", "cat 6"]
    assert (summary["samples"], summary["seeds"]) == ([1, 1, 1], [FRESH_SEEDS])
    assert told == [
        (f"Drawing {when} training", prompt, number, 3)
        for when in ("after", "before")
        for number, prompt in enumerate(summary["prompts"], 1)
    ]
    # No image has another of its prompt beside it.
    assert summary["before"].keys() == summary["after"].keys() == {"reward", "green"}


def test_only_prompts_with_several_images_have_a_distance(tuned, make_config, green):
    config = make_config(evaluation_samples=3, sample_batch_size=2)
    summary = compare(tuned, green, config)
    assert summary["samples"] == [2, 1]
    drawn = Sampler(tuned, config).sample(config.prompts[:1], summary["seeds"])
    expected = pixel_distance(torch.stack([one.image for one in drawn]))
    assert summary["after"]["pixel_distance"] == pytest.approx(expected)


def test_no_more_than_a_batch_is_in_memory(tuned, make_config, green, monkeypatch):
    alive, most = weakref.WeakSet(), []
    decode = Sampler.decode

    def decoded(self, latents):
        images = decode(self, latents)
        gc.collect()
        most.append(sum(len(each) for each in alive))
        alive.add(images)
        return images

    monkeypatch.setattr(Sampler, "decode", decoded)
    monkeypatch.setattr(diversity_module, "_MEMORY", 0)  # so that all of a pile is on the disk
    config = make_config(evaluation_samples=9, sample_batch_size=2, prompts=("a cat",))
    held = compare(tuned, green, config)
    assert len(most) == 10
    assert max(most) <= 2
    monkeypatch.undo()
    assert compare(tuned, green, config) == held
