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


def test_the_loss_is_the_policy_gradient_a_weight_of_nfts_and_nfts_kl(loop):
    batch = loop.buffer.examples
    parts = (loop.config, loop.sampler, loop.conditioning, loop.advantage)
    policy = DPOK(*parts).loss(batch.transitions)
    forward = NFT(*parts).loss(batch.images)
    both = loop.objective.loss(batch)
    kl = forward.measured["kl"]
    gradient, denoising = policy.loss - 0.5 * policy.measured["kl"], forward.loss - 0.5 * kl
    assert kl > 1e-6
    torch.testing.assert_close(both.loss, gradient + 0.7 * denoising + 0.5 * kl)
    torch.testing.assert_close(both.measured["kl"], kl)
    torch.testing.assert_close(both.measured["change"], forward.measured["change"])


def test_each_transition_has_an_image_of_its_sample_and_these_are_of_all_steps(loop):
    batch = loop.buffer.examples
    assert len(batch) == 4 * 3  # samples and noisy steps, of four in all
    assert len(loop.sampler.denoising) == 4
    assert batch.transitions.step.tolist() == [0, 1, 2] * 4
    torch.testing.assert_close(batch.transitions.reward, batch.images.reward)
    signal = loop.sampler.denoising.signal
    assert {*batch.images.step.tolist()} == {*(signal >= 0.18).nonzero().flatten().tolist()}
    assert 3 in batch.images.step  # after the window, where no transition is
    assert {*batch.images.prompt.tolist()} - {*batch.transitions.prompt.tolist()} <= {2}


def test_it_measures_what_both_measure(loop):
    record = loop.advance(2)
    assert {"kl", "ratio/mean", "ratio/first_max_dev", "clip_fraction", "change"} <= record.keys()
    # The fresh transitions are of the policy as it was shaken.
    assert record["ratio/first_max_dev"] <= 1e-5
