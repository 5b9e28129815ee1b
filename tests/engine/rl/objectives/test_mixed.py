"""The mixed objective is the sum of its two, on images of the same samples."""

import pytest
import torch

from dpok_cli.engine.rl.objectives.dpok import DPOK
from dpok_cli.engine.rl.objectives.nft import NFT

SMALL = dict(
    objective="mixed",
    noise_window=True,
    rest_steps=1,
    num_inference_steps=6,
    timestep_fraction=0.5,
    guidance_scale=2.0,
    beta=0.5,
)


@pytest.fixture
def loop(make_config, make_model, green, rl_loop, shake):
    loop = rl_loop(make_config(**SMALL, nft_weight=0.7), make_model(beta_end=0.004), green)
    loop.advance(1)
    shake(loop.sampler.model, size=0.02)
    return loop


def test_the_loss_is_dpoks_and_a_weight_of_nfts_without_its_kl(loop):
    batch = loop.buffer.examples
    parts = (loop.config, loop.sampler, loop.conditioning, loop.advantage)
    policy = DPOK(*parts).loss(batch.transitions)
    forward = NFT(*parts).loss(batch.images)
    both = loop.objective.loss(batch)
    alone = forward.loss - 0.5 * forward.measured["kl"]
    assert forward.measured["kl"] > 1e-6
    torch.testing.assert_close(both.loss, policy.loss + 0.7 * alone)
    torch.testing.assert_close(both.measured["kl"], policy.measured["kl"])
    torch.testing.assert_close(both.measured["change"], forward.measured["change"])


def test_each_transition_has_an_image_of_its_sample_at_a_level_that_is_trained_on(loop):
    batch = loop.buffer.examples
    assert len(batch) == 4 * 3  # samples and noisy steps, of four in all
    assert len(loop.sampler.denoising) == 4
    assert batch.transitions.step.tolist() == [0, 1, 2] * 4
    torch.testing.assert_close(batch.transitions.reward, batch.images.reward)
    assert {*batch.images.step.tolist()} <= {*loop.objective.nft.levels.tolist()}
    assert {*batch.images.prompt.tolist()} - {*batch.transitions.prompt.tolist()} <= {2}


def test_it_measures_what_both_measure(loop):
    record = loop.advance(2)
    assert {"kl", "ratio/mean", "ratio/first_max_dev", "clip_fraction", "change"} <= record.keys()
    # The fresh transitions are of the policy as it was shaken.
    assert record["ratio/first_max_dev"] <= 1e-5
