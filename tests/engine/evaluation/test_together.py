"""Rewards that compare see the images of a prompt that all models drew."""

import json

import pytest
import torch

from dpok_cli.config import EvaluateConfig
from dpok_cli.engine.evaluation.compare import compare
from dpok_cli.engine.evaluation.contenders import BASE, Contender
from dpok_cli.engine.evaluation.draw import draw
from dpok_cli.engine.evaluation.plan import Evaluation, Prompt
from dpok_cli.engine.evaluation.results import summarise
from dpok_cli.engine.evaluation.together import compare_drawn, together
from dpok_cli.errors import RewardError
from dpok_cli.rewards.combined import WeightedReward
from support.evaluations import open_folder
from support.rewards import Brightest, Brightness

PROMPTS = (Prompt("a green rabbit", "seen"), Prompt("two cats", "unseen"))
MODELS = (BASE, "tuned")


class Broken(Brightest):
    """Fails at the second prompt."""

    def score_group(self, images, prompt):
        if "cats" in prompt:
            raise RuntimeError("out of paper")
        return super().score_group(images, prompt)


@pytest.fixture
def tuned(model, shake):
    model.adapter.add(4, 0.0, ["to_q", "to_v", "to_out.0"], seed=0)
    shake(model)
    return model


def reward_of(*parts):
    return WeightedReward([(part, 1.0) for part in parts])


def test_images_of_one_seed_are_neighbours():
    images = [torch.full((2, 3, 1, 1), value) for value in (0.1, 0.2, 0.3)]
    images[0][1] = 0.4
    seen = []

    class Seeing(Brightest):
        def score_group(self, images, prompt):
            seen.extend(images[:, 0, 0, 0].tolist())
            return super().score_group(images, prompt)

    scores = together(reward_of(Seeing()), "brightest", images, "a", "cpu")
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.2, 0.3])
    assert scores.tolist() == [
        pytest.approx([0.0, 1.0]),
        pytest.approx([0.2, 0.2]),
        pytest.approx([0.6, 0.6]),
    ]


def test_an_evaluation_compares_models_and_resumes(make_config, tuned, tmp_path):
    tuned.adapter.save(tmp_path / "lora")
    settings = {"prompts": ("a green rabbit",), "samples": 3, "resamples": 100}
    config = make_config(EvaluateConfig, sample_batch_size=2, **settings)
    contenders = (Contender(BASE), Contender("tuned", tmp_path / "lora"))
    specs = ("brightness", "brightest")
    evaluation = Evaluation(config, contenders, PROMPTS, specs)
    folder = open_folder(tmp_path / "evaluation", evaluation)
    with pytest.raises(RewardError, match=r"^brightest: RuntimeError: out of paper$"):
        list(draw(evaluation, reward_of(Brightness(), Broken()), folder))
    compares = Brightest()
    reward = reward_of(Brightness(), compares)
    assert len(list(draw(evaluation, reward, folder))) == 12
    assert compares.groups == [("two cats", 6)]  # the first prompt was compared before

    records = folder.records()
    for row in range(2):
        own = [record for record in records.values() if record["row"] == row]
        light = [record["scores"]["brightness"] for record in own]
        ranks = [sum(other < each for other in light) / 5 for each in light]
        assert [record["scores"]["brightest"] for record in own] == pytest.approx(ranks)
    assert compare_drawn(evaluation, reward, folder) == 0
    means = {
        row["model"]: row["mean"]
        for row in summarise(evaluation, reward, folder)["rows"]
        if (row["measure"], row["scope"], row["group"]) == ("brightest", "group", "seen")
    }
    assert sum(means.values()) == pytest.approx(1)
    assert means[BASE] != means["tuned"]
    assert len(json.loads(folder.scores.read_text().splitlines()[-1])["scores"]) == 2


def test_before_and_after_training_are_compared(tuned, make_config):
    config = make_config(evaluation_samples=5)
    compares = Brightest()
    summary = compare(tuned, reward_of(compares, Brightness()), config)
    assert sorted(compares.groups) == sorted(zip(config.prompts, (6, 4), strict=True))
    before, after = summary["before"], summary["after"]
    assert list(before)[:3] == list(after)[:3] == ["reward", "brightest", "brightness"]
    assert before["brightest"] + after["brightest"] == pytest.approx(1)
    assert before["brightest"] != pytest.approx(0.5)
    for side in (before, after):
        assert side["reward"] == pytest.approx(side["brightest"] + side["brightness"])
