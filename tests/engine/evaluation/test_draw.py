"""Drawing and scoring, with a very small model and a reward whose value is known."""

import json
import weakref
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpok_cli.config import EvaluateConfig
from dpok_cli.engine.evaluation import draw as engine
from dpok_cli.engine.evaluation.contenders import BASE, Contender
from dpok_cli.engine.evaluation.draw import draw, eight_bits
from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation, Place, Prompt
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.sampling.step import epsilon_kl, gaussian_kl
from dpok_cli.errors import NotFiniteError, RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.images import to_pil
from support.evaluations import open_folder

PROMPTS = (Prompt("a green rabbit", "seen"), Prompt("two cats", "unseen"))


@pytest.fixture
def adapter(model, shake, tmp_path):
    model.adapter.add(4, 0.0, ["to_q", "to_v", "to_out.0"], seed=0)
    shake(model)
    model.adapter.save(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.fixture
def make(make_config, adapter, tmp_path):
    """Makes an evaluation of the base and the adapter, and its folder."""

    def make(folder="evaluation", **changes):
        config = make_config(
            EvaluateConfig,
            **{"prompts": ("a green rabbit",), "samples": 3, "resamples": 100} | changes,
        )
        contenders = (Contender(BASE), Contender("tuned", adapter))
        evaluation = Evaluation(config, contenders, PROMPTS, ("green",))
        return evaluation, open_folder(tmp_path / folder, evaluation)

    return make


def pixels(folder, model, place):
    with Image.open(folder.image(model, place)) as picture:
        return np.asarray(picture, dtype=np.float64) / 255


def test_what_is_scored_is_what_is_on_disk(make, green):
    evaluation, folder = make()
    records = list(draw(evaluation, green, folder))
    assert len(records) == evaluation.total == 12
    for record in records:
        red, greens, blue = pixels(
            folder, record["model"], Place(record["row"], record["seed"])
        ).mean((0, 1))
        assert record["scores"] == {"green": pytest.approx(greens - (red + blue) / 2, abs=1e-6)}
    assert list(folder.records().values()) == records


def test_every_model_draws_what_dpok_sample_draws(make, green, adapter):
    evaluation, folder = make()
    list(draw(evaluation, green, folder))
    for contender in evaluation.contenders:
        model = engine.load(evaluation.config, contender.adapter)
        texts = [prompt.text for prompt in PROMPTS]
        drawn = Sampler(model, evaluation.config).sample(texts, evaluation.seeds)
        for place, one in zip(chain(*evaluation.batches()), drawn, strict=True):
            expected = np.asarray(to_pil(one.image), dtype=np.float64)
            kept = pixels(folder, contender.name, place) * 255
            assert np.abs(expected - kept).max() <= 1
    place = Place(0, evaluation.seeds[0])
    assert (pixels(folder, BASE, place) != pixels(folder, "tuned", place)).any()


@pytest.mark.parametrize("form", ["epsilon", "gaussian"])
def test_kl_is_the_sum_over_the_trajectory(form, make, green):
    evaluation, folder = make(kl=form, guidance_scale=2.0)
    records = list(draw(evaluation, green, folder))
    assert {record["kl"] for record in records if record["model"] == BASE} == {0.0}

    config = evaluation.config
    model = engine.load(config, evaluation.contenders[1].adapter)
    sampler = Sampler(model, config)
    texts = model.encode([prompt.text for prompt in PROMPTS])[[0, 0, 0, 1, 1, 1]]
    expected = torch.zeros(6)
    with torch.no_grad():
        for index, taken in enumerate(sampler.steps(texts, list(evaluation.seeds) * 2)):
            if index not in sampler.denoising.stochastic:
                continue
            step = torch.full((6,), index)
            with model.reference():
                output = model.denoiser(
                    taken.latents, sampler.denoising.timesteps[step], texts, config.guidance_scale
                )
            if form == "epsilon":
                expected += epsilon_kl(taken.policy.output, output)
            else:
                other = sampler.denoising.distribution(output, taken.latents, step)
                expected += gaussian_kl(taken.policy.mean, other.mean, taken.policy.std)
    found = [record["kl"] for record in records if record["model"] == "tuned"]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    assert min(found) > 0


def test_images_that_are_not_finite_are_an_error_of_their_model(make, green, adapter):
    evaluation, folder = make()
    file = adapter / "pytorch_lora_weights.safetensors"
    weights = {name: torch.full_like(each, 1e30) for name, each in load_file(file).items()}
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(weights, file, metadata)
    with pytest.raises(NotFiniteError, match="^tuned: The images are not finite"):
        list(draw(evaluation, green, folder))
    assert {model for model, _ in folder.records()} == {BASE}


def test_without_noise_there_is_no_kl(make, green):
    evaluation, folder = make(eta=0.0)
    assert {record["kl"] for record in draw(evaluation, green, folder)} == {None}


def test_an_interrupted_evaluation_resumes_to_the_same_end(make, green):
    """Batches of 4 over 6 images a model: one spans two prompts, the last is short."""
    evaluation, whole = make("whole")
    expected = list(draw(evaluation, green, whole))
    for stop in (1, 4, 5, 11):
        _, folder = make(f"cut after {stop}")
        records = draw(evaluation, green, folder)
        for _ in range(stop):
            next(records)
        records.close()
        text = folder.scores.read_text()
        folder.scores.write_text(text[:-9])  # the last line was on its way
        assert list(draw(evaluation, green, folder)) == expected
        assert folder.records() == whole.records()
        for model, place in whole.records():
            kept, drawn = (each.image(model, place).read_bytes() for each in (whole, folder))
            assert drawn == kept


def test_what_is_kept_is_not_drawn_again(make, green, monkeypatch):
    evaluation, folder = make()
    expected = list(draw(evaluation, green, folder))
    monkeypatch.setattr(engine, "load", None)  # would raise if it were called
    assert list(draw(evaluation, WeightedReward([]), folder)) == expected


def test_a_reward_that_fails_leaves_what_was_kept(make, green):
    class Fails(RewardModel):
        name = "fails"
        calls = 0

        def score_batch(self, images, prompts):
            Fails.calls += 1
            return images.mean((1, 2, 3)) / (0.0 if Fails.calls == 2 else 1.0)

    evaluation, folder = make()
    reward = WeightedReward([(Fails(), 1.0)])
    with pytest.raises(RewardError, match="fails: returned inf"):
        list(draw(evaluation, reward, folder))
    assert len(folder.records()) == 4
    assert len(list(draw(evaluation, reward, folder))) == 12


def test_no_more_than_a_batch_is_scored_at_a_time(make):
    class Counts(RewardModel):
        name = "counts"
        seen = ()

        def score_batch(self, images, prompts):
            Counts.seen += (len(images),)
            return images.mean((1, 2, 3))

    evaluation, folder = make(samples=9)
    list(draw(evaluation, WeightedReward([(Counts(), 1.0)]), folder))
    assert Counts.seen == (4, 4, 4, 4, 2) * 2


def test_no_more_than_a_batch_stays_in_memory(make, green, monkeypatch):
    keep, pictures_made, alive = EvaluationFolder.keep, [], []

    def watched(folder, records, pictures):
        pictures_made.extend(map(weakref.ref, pictures))
        alive.append(sum(picture() is not None for picture in pictures_made))
        keep(folder, records, pictures)

    monkeypatch.setattr(EvaluationFolder, "keep", watched)
    evaluation, folder = make(samples=9)
    list(draw(evaluation, green, folder))
    assert len(pictures_made) == 36
    assert alive == [4, 4, 4, 4, 2] * 2


def test_records_are_plain_json(make, green):
    evaluation, folder = make(samples=1)
    list(draw(evaluation, green, folder))
    first = json.loads(folder.scores.read_text().splitlines()[0])
    assert set(first) == {"model", "row", "seed", "scores", "kl"}


def test_eight_bits_are_those_of_the_file():
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    for image, rounded in zip(images, eight_bits(images), strict=True):
        stored = torch.from_numpy(np.array(to_pil(image))).permute(2, 0, 1) / 255
        assert torch.equal(rounded, stored)
