"""Supervised fine-tuning of every family: what is predicted, of which noise, with which texts."""

import warnings

import pytest
import torch

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.sft.dataset.collect import ImageSet
from dpok_cli.engine.sft.loop import SFTLoop
from dpok_cli.engine.training.session import Session
from dpok_cli.rewards.combined import Scores
from support.families import NEWER, make

FLOW = [each for each in NEWER if each != "sdxl"]


@pytest.fixture
def loop(make_config, tmp_path):
    """Makes a loop on four images of one weight: ``loop(family, **settings)``."""

    def loop(family, **changes):
        settings = dict(batch_size=4, log_every=1, steps=100) | changes
        config = make_config(TrainSFTConfig, gamma=0.0, **settings)
        session = Session(
            config, DiffusionModel(make(family)), None, lambda: False, warnings.warn, config.steps
        )
        latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        scores = Scores(torch.ones(4), {"green": torch.ones(4)})
        prompts = [config.prompts[row % 2] for row in range(4)]
        return SFTLoop(config, ImageSet(latents, prompts, scores, 100, tmp_path), session)

    return loop


@pytest.fixture(params=NEWER)
def family(request):
    return request.param


def test_a_step_lowers_the_loss(loop, family):
    """Of the same images, noise and timesteps; each step moves the weights a little."""
    made = loop(family, learning_rate=3e-3)
    generator = torch.Generator().manual_seed(0)
    examples = made.examples(
        torch.arange(4),
        made.session.model.base.draw_timesteps(4, generator),
        torch.randn(4, 4, 8, 8, generator=generator),
        torch.zeros(4, dtype=torch.bool),
    )
    losses = []
    for _ in range(5):
        with made.updater.accumulate(last=True):
            loss = made.objective.loss(examples, with_kl=False).loss
            made.updater.backward(loss)
        made.updater.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-4


@pytest.mark.parametrize("family", FLOW)
def test_flow_matching_by_hand(family):
    """x_t = (1 - s) x_0 + s e at the timestep 1000 s, of which e - x_0 is predicted."""
    base = DiffusionModel(make(family)).base
    x_0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy, target = base.corrupt(x_0, noise, torch.tensor([1000.0, 250.0, 1.0]))
    assert torch.equal(noisy[0], noise[0])
    torch.testing.assert_close(noisy[1], 0.75 * x_0[1] + 0.25 * noise[1])
    torch.testing.assert_close(noisy[2], 0.999 * x_0[2] + 0.001 * noise[2])
    torch.testing.assert_close(target, noise - x_0)
    # From the true velocity a step of the sampler finds x_0 and the noise again.
    torch.testing.assert_close(noisy[1] - 0.25 * target[1], x_0[1])
    torch.testing.assert_close(noisy[1] + 0.75 * target[1], noise[1])


@pytest.mark.parametrize("family", FLOW)
def test_the_timesteps_of_flow_matching(family):
    """Logit-normal over the levels of training, which the scheduler may have shifted."""
    base = DiffusionModel(make(family)).base
    drawn = base.draw_timesteps(20_000, torch.Generator().manual_seed(0))
    assert drawn.shape == (20_000,)
    assert 0 < drawn.min() < drawn.max() <= 1000
    shift = 3.0 if family in ("sd35", "zimage") else 1.0  # a dynamic shift is of sampling
    middle = 1000 * shift * 0.5 / (1 + (shift - 1) * 0.5)
    assert drawn.median().item() == pytest.approx(middle, rel=0.02)
    inside = ((drawn / 1000) / (shift - (shift - 1) * drawn / 1000)).logit()
    assert inside[inside.isfinite()].std().item() == pytest.approx(1.0, abs=0.05)


def test_a_dropped_prompt_is_the_unconditional_row_of_sampling(loop, family):
    """SDXL's is zeros, which its encoders do not give for any text."""
    made = loop(family, prompt_dropout=0.5)
    model = made.session.model
    texts = made.objective._encode(["two cats", None])
    expected = model.encode(["two cats"], "")
    for row, text in enumerate((expected.prompts, expected.negative)):
        row_of = texts.prompts[[row]].trimmed()
        torch.testing.assert_close(row_of.embeds, text.trimmed().embeds[:1])
        if text.pooled is not None:
            torch.testing.assert_close(texts.prompts.pooled[row], text.pooled[0])
    if family == "sdxl":
        assert not texts.prompts.embeds[1].any()
        assert not texts.prompts.pooled[1].any()
    else:
        empty = model.encode([" " if family == "qwen" else ""]).prompts
        torch.testing.assert_close(texts.prompts[[1]].trimmed().embeds, empty.embeds)


@pytest.mark.parametrize("family", NEWER)
def test_the_guidance_that_the_denoiser_is_given(loop, family, monkeypatch):
    made, given = loop(family, guidance_scale=3.5), []
    base = made.session.model.base
    original = base.predict

    def predict(network, latents, timesteps, conditioning, guidance_scale):
        given.append((guidance_scale, base.rows(guidance_scale)))
        return original(network, latents, timesteps, conditioning, guidance_scale)

    monkeypatch.setattr(base, "predict", predict)
    made.advance(1)
    assert set(given) == {(3.5 if family == "flux" else 1.0, 1)}
