"""Supervised fine-tuning: its weights, its steps, and going on with them bit for bit."""

import warnings
from itertools import count

import pytest
import torch

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sft.dataset.collect import ImageSet
from dpok_cli.engine.sft.loop import SFTLoop, train_sft
from dpok_cli.engine.training import checkpoint
from dpok_cli.engine.training.session import Session
from dpok_cli.engine.training.updater import Updater
from dpok_cli.errors import InputError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import Scores, WeightedReward


@pytest.fixture
def loop(make_model, make_config, tmp_path):
    """Makes a loop on five images with the rewards given."""

    def make(rewards=(1.0, -3.0, 0.5, 2.0, -2.5), scheduler=None, **changes):
        config = make_config(TrainSFTConfig, **changes)
        model = make_model(**scheduler or {})
        session = Session(config, model, None, lambda: False, warnings.warn, config.steps)
        random = torch.Generator().manual_seed(3)
        latents = torch.randn(len(rewards), 4, 8, 8, generator=random)
        total = torch.tensor(rewards)
        scores = Scores(total, {"green": total})
        prompts = [config.prompts[row % 2] for row in range(len(rewards))]
        return SFTLoop(config, ImageSet(latents, prompts, scores, 100, tmp_path), session)

    return make


def weights_of(model):
    return {
        name: parameter.detach().clone()
        for name, parameter in model.pipeline.unet.named_parameters()
        if ".lora_" in name
    }


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------- weights


def test_images_without_weight_are_counted_and_left_out(loop):
    made = loop(gamma=2.0)
    assert made.weights.tolist() == [3.0, 2.5, 4.0]
    assert made.prompts == ["a green rabbit", "a green rabbit", "two cats"]
    assert made.share == 3 / 5
    assert made.of_images == pytest.approx(
        {
            "samples": 5,
            "reward/mean": -0.4,
            "reward/std": 1.9849,
            "reward/green": -0.4,
            "weight/mean": 9.5 / 5,
            "weight/zero": 2,
        },
        abs=1e-3,
    )


def test_with_the_kl_in_the_loss_all_images_stay(loop):
    made = loop(gamma=2.0, kl_form="kl-o")
    assert made.weights.tolist() == [1.0, 0.0, 0.5, 2.0, 0.0]
    assert (made.share, made.of_images["weight/zero"]) == (1.0, 2)
    plain = loop(gamma=0.0, kl_form="kl-o")
    assert (plain.weights.tolist(), plain.share) == ([1.0, 0.5, 2.0], 3 / 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gamma": 0.25},
            "the best reward is -0.500. Give a --gamma above 0.500; with 2.000 about",
        ),
        ({"gamma": 5.0, "kl_form": "kl-o"}, "Give --kl-form kl-d, whose gamma shifts rewards, and"),
    ],
)
def test_all_weights_zero(changes, message, loop):
    with pytest.raises(InputError) as caught:
        loop(rewards=(-3.0, -0.5, -2.0), **changes)
    assert "All 3 weights are cut to zero" in str(caught.value)
    assert message in str(caught.value)


# ---------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_loss_by_hand(prediction, loop, shake):
    made = loop(scheduler={"prediction_type": prediction}, gamma=2.0, guidance_scale=5.0)
    shake(made.session.model)
    random = torch.Generator().manual_seed(1)
    rows, timesteps = torch.tensor([2, 0]), torch.tensor([17, 902])
    noise = torch.randn(2, 4, 8, 8, generator=random)
    nothing = torch.tensor([False, False])
    loss, error, kl = made.objective.loss(
        made.examples(rows, timesteps, noise, nothing), with_kl=True
    )

    signal = made.session.model.base.scheduler.alphas_cumprod[timesteps].sqrt().view(2, 1, 1, 1)
    spread = (1 - signal**2).sqrt()
    x_0 = made.latents[rows]
    noisy = signal * x_0 + spread * noise
    target = {"epsilon": noise, "v_prediction": signal * noise - spread * x_0, "sample": x_0}
    embeds = made.session.model.encode(["two cats", "a green rabbit"]).prompts.embeds
    unet = made.session.model.pipeline.unet
    with torch.no_grad():
        output = unet(noisy, timesteps, embeds).sample
        unet.disable_adapters()
        frozen = unet(noisy, timesteps, embeds).sample
        unet.enable_adapters()
    errors = ((output - target[prediction]) ** 2).mean((1, 2, 3))
    assert error.tolist() == pytest.approx(errors.tolist(), rel=1e-5)
    assert kl.tolist() == pytest.approx(((output - frozen) ** 2).mean((1, 2, 3)).tolist(), rel=1e-4)
    assert kl.min() > 1e-6
    # weights 4 and 3 of the images kept, which are 3 of 5
    expected = (4 * errors[0] + 3 * errors[1]) / 2 * 3 / 5
    assert made.share * loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_kl_is_in_the_loss_of_kl_o_alone(loop, shake):
    made = loop(gamma=2.0, kl_form="kl-o")
    shake(made.session.model)
    rows, timesteps, noise = torch.tensor([1, 4]), torch.tensor([17, 902]), torch.ones(2, 4, 8, 8)
    none = torch.tensor([False, False])
    loss, _, kl = made.objective.loss(made.examples(rows, timesteps, noise, none), with_kl=False)
    assert loss.item() == pytest.approx(2 * kl.mean().item(), rel=1e-6)  # their weights are zero
    assert loss.requires_grad
    other = loop(gamma=2.0)
    examples = other.examples(rows[:1], timesteps[:1], noise[:1], none[:1])
    assert other.objective.loss(examples, with_kl=False).kl is None


def test_a_dropped_prompt_is_none(loop, monkeypatch):
    made = loop(prompt_dropout=0.5, batch_size=64, negative_prompt="grey")
    asked = []
    original = made.objective._encode
    monkeypatch.setattr(
        made.objective, "_encode", lambda texts: asked.extend(texts) or original(texts)
    )
    made.advance(1)
    assert 20 < asked.count(None) < 44
    assert set(asked) == {None, "a green rabbit", "two cats"}
    asked.clear()
    loop(prompt_dropout=0.0, batch_size=64)
    assert None not in asked
    texts = original(["two cats", None, None, "a green rabbit"])
    embeds = made.session.model.encode(["two cats", "a green rabbit", ""]).prompts.embeds
    torch.testing.assert_close(texts.prompts.embeds, embeds[[0, 2, 2, 1]])


def test_what_a_step_trains_on_is_by_its_number_not_by_its_batches(loop):
    one, parts = loop(batch_size=4), loop(batch_size=2, gradient_accumulation=2)
    other = loop(batch_size=4, seed=1)
    for number in (1, 2):
        for made in (one, parts, other):
            made.advance(number)
    for name, weight in weights_of(one.session.model).items():
        assert torch.allclose(weight, weights_of(parts.session.model)[name], atol=1e-4)
    a, b = (
        torch.cat([w.flatten() for w in weights_of(m.session.model).values()]) for m in (one, other)
    )
    assert (a - b).abs().max() > 1e-3


def test_no_image_comes_twice_before_all_have(loop):
    made = loop(gamma=4.0)  # five images
    random = torch.Generator().manual_seed(0)
    first = made._choose(13, random)
    assert sorted(first[:5].tolist()) == sorted(first[5:10].tolist()) == [0, 1, 2, 3, 4]
    assert len(set(first[10:].tolist())) == 3
    assert made._choose(13, random).tolist() != first.tolist()


def test_training_fits_the_images_by_their_weight(loop):
    """Of two images under one prompt, the one with the larger weight is learned better."""

    def error_of(made, row):
        with torch.no_grad():
            random = torch.Generator().manual_seed(9)
            rows, timesteps = torch.full((32,), row), torch.full((32,), 500)
            noise = torch.randn(32, 4, 8, 8, generator=random)
            none = torch.zeros(32, dtype=torch.bool)
            examples = made.examples(rows, timesteps, noise, none)
            return made.objective.loss(examples, False).denoising.mean().item()

    errors = []
    for rewards in ((6.0, -1.9), (-1.9, 6.0)):
        made = loop(rewards, prompts=("a", "a"), gamma=2.0, batch_size=16, steps=60)
        before = error_of(made, 0)
        for number in range(1, 61):
            made.advance(number)
        errors.append(error_of(made, 0))
    assert errors[0] < before - 0.02
    assert errors[0] < errors[1] - 0.002


def test_gamma_of_kl_o_keeps_near_the_reference(loop):
    def kl_after(gamma):
        made = loop(gamma=gamma, kl_form="kl-o", steps=20, log_every=20)
        return [made.advance(number) for number in range(1, 21)][-1]["kl"]

    assert kl_after(50.0) < 0.5 * kl_after(0.0)


# ------------------------------------------------------------------------------------- the whole


@pytest.fixture
def go(make_model, make_config, green, tmp_path):
    """Start or resume a run with a new model; returns its outputs."""

    def go(name, stop=lambda: False, reward=green, **changes):
        settings = dict(steps=7, log_every=3, sample_every=3, sample_count=2, tracker="")
        settings |= dict(checkpoint_every=2, runs_dir=str(tmp_path), name=name)
        config = make_config(TrainSFTConfig, **settings | changes)
        path, model = tmp_path / name, make_model()
        run = RunFolder(path) if path.exists() else RunFolder.create(config)
        yielded = list(train_sft(config, model, reward, run, stop))
        records = [
            {key: value for key, value in record.items() if not key.startswith("seconds/")}
            for record in run.history()
        ]
        grids = {file.name: file.read_bytes() for file in run.samples.glob("*")}
        return records, weights_of(model), grids, yielded

    return go


@pytest.fixture(scope="module")
def left_alone():
    """What uninterrupted runs left, by their form."""
    return {}


@pytest.fixture
def whole(go, left_alone):
    """Returns what an uninterrupted run leaves; each form has one."""

    def whole(form="kl-d"):
        if form not in left_alone:
            left_alone[form] = go("whole", **FORMS[form])
        return left_alone[form]

    return whole


def assert_same(a, b):
    assert a[0] == b[0]
    assert_equal(a[1], b[1])
    assert a[2] == b[2]


def test_what_a_run_leaves(go, tmp_path):
    records, weights, grids, yielded = go("run")
    assert [record["step"] for record in records] == [3, 6, 7]
    assert [record["step"] for record in yielded] == [3, 6, 7]
    assert set(grids) == {f"step-0000{n}.png" for n in (0, 3, 6, 7)}
    assert all(weight.isfinite().all() for weight in weights.values())
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    last = records[-1]
    assert last["samples"] == 6
    assert last["kl"] > 0
    # 6 images of 4 steps; 7 updates on 4 images, and the reference thrice
    assert last["denoiser_evaluations"] == 6 * 4 + 7 * 4 + 3 * 4
    card = (tmp_path / "run/adapter/README.md").read_text()
    assert "reward-weighted supervised fine-tuning" in card
    assert "KL-D, gamma 2" in card
    assert "on 6 images" in card
    assert checkpoint.numbers(tmp_path / "run/checkpoints") == [6, 7]
    assert len((tmp_path / "run/dataset/metadata.jsonl").read_text().splitlines()) == 6


def bright():
    """A reward above zero, which "kl-o" needs."""

    class Bright(RewardModel):
        name = "bright"

        def score_batch(self, images, prompts):
            return images.mean(dim=(1, 2, 3))

    return WeightedReward([(Bright(), 1.0)])


FORMS = {
    "kl-d": {},
    "kl-o and schedule": dict(
        kl_form="kl-o", reward=bright(), lr_schedule="cosine", lr_warmup_steps=2
    ),
    "accumulated": dict(batch_size=2, gradient_accumulation=2, prompt_dropout=0.3),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_stopped_run_resumes(form, go, whole, tmp_path):
    cut = go("cut", stop=(tmp_path / "cut/samples/step-00003.png").exists, **FORMS[form])
    assert [record["step"] for record in cut[0]] == [3]
    assert checkpoint.numbers(tmp_path / "cut/checkpoints") == [2, 3]
    assert_same(go("cut", **FORMS[form]), whole(form))


@pytest.mark.parametrize("call", [0, 100, 400])
def test_stopped_while_drawing(call, go, whole, tmp_path):
    calls = count()
    assert go("cut", stop=lambda: next(calls) >= call)[0] == []
    assert next(calls) < call + 20
    assert not (tmp_path / "cut/checkpoints").exists()
    assert_same(go("cut"), whole())


@pytest.mark.parametrize("step", [1, 3, 6])
def test_cut_off_within_a_step(step, go, whole, monkeypatch):
    class Killed(BaseException):
        pass

    original, taken = Updater.step, 0

    def cut_off(self):
        nonlocal taken
        taken += 1
        if taken == step:
            raise Killed
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "step", cut_off)
        with pytest.raises(Killed):
            go("cut")
    assert_same(go("cut"), whole())


def test_a_longer_run_goes_on(go):
    whole = go("whole", steps=6)
    go("cut", steps=3)
    assert_same(go("cut", steps=6), whole)


def test_gamma_is_swept_on_one_set(go, tmp_path, monkeypatch):
    first = go("first", dataset=str(tmp_path / "set"))
    # Nothing is drawn again.
    monkeypatch.setattr("dpok_cli.engine.sft.dataset.sources.Reference.take", None)
    again = go("again", dataset=str(tmp_path / "set"))
    swept = go("swept", dataset=str(tmp_path / "set"), gamma=1.0)
    assert_same(again, first)
    assert swept[0][0]["weight/mean"] != first[0][0]["weight/mean"]
    assert not (tmp_path / "again/dataset").exists()
