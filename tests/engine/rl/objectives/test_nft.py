"""DiffusionNFT's loss by hand, and what its examples are made of."""

import pytest
import torch

from dpok_cli.engine.rl.objectives.nft import nft_loss
from dpok_cli.engine.rl.rollout import Trajectories, noised_images, rollout
from dpok_cli.errors import InputError


def one(value):
    """One example of one element."""
    return torch.tensor(value).view(1, 1, 1, 1)


def by_hand(advantage, output=1.5, **changes):
    """f_old = 1, v = 2, b = 0.5, A_max = 2: at f = 1.5, f+ = 1.25 and f- = 0.75."""
    given = dict(strength=0.5, advantage_clip=2.0, beta=0.0) | changes
    kl = torch.zeros(1)
    return nft_loss(one(output), one(1.0), one(2.0), torch.tensor([advantage]), kl, **given)


@pytest.mark.parametrize(
    ("advantage", "good"), [(0.0, 0.5), (1.0, 0.75), (-1.0, 0.25), (2.0, 1.0), (9.0, 1.0)]
)
def test_loss_by_hand(advantage, good):
    # |f+ - v|^2 / |f+ - v| = 0.75, |f- - v|^2 / |f- - v| = 1.25
    assert by_hand(advantage).loss.item() == pytest.approx(good * 0.75 + (1 - good) * 1.25)


def test_kl_is_added_with_its_weight_and_measured():
    kl = torch.tensor([0.1, 0.3])
    loss = nft_loss(
        *(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)),
        *(torch.zeros(2), kl),
        **dict(strength=1.0, advantage_clip=1.0, beta=0.5),
    )
    assert loss.loss.item() == pytest.approx(1.0 + 0.5 * 0.2)
    assert loss.measured["kl"].item() == pytest.approx(0.2)
    assert by_hand(0.0).measured["change"].item() == pytest.approx(0.25)


def test_going_down_leads_to_what_did_well_and_from_the_rest():
    def slope(advantage):
        output = one(1.0).requires_grad_()  # at f = f_old both errors are -1
        given = dict(strength=0.5, advantage_clip=2.0, beta=0.0)
        kl = torch.zeros(1)
        loss = nft_loss(output, one(1.0), one(2.0), torch.tensor([advantage]), kl, **given)
        return torch.autograd.grad(loss.loss, output)[0].item()

    # d/df = b (r - (1 - r)) 2 (f_old - v) / |f_old - v| = -(2 r - 1)
    assert [slope(advantage) for advantage in (2.0, 1.0, 0.0, -2.0)] == pytest.approx(
        [-1.0, -0.5, 0.0, 1.0]
    )


def test_gradients_flow_through_output_and_kl_alone():
    output, old, target = (one(value).requires_grad_() for value in (1.5, 1.0, 2.0))
    advantage, kl = torch.tensor([1.0]).requires_grad_(), torch.tensor([0.2]).requires_grad_()
    loss = nft_loss(
        *(output, old, target.detach(), advantage, kl), strength=1.0, advantage_clip=2.0, beta=3.0
    )
    loss.loss.backward()
    assert output.grad is not None
    assert kl.grad.item() == pytest.approx(3.0)
    assert (old.grad, advantage.grad) == (None, None)
    assert not any(value.requires_grad for value in loss.measured.values())


def test_examples_are_the_image_at_a_level_with_the_policys_prediction(make_config, model, green):
    """For a model that predicts noise: x_t = a x_0 + s e, with e as the target."""
    config = make_config(objective="nft", eta=0.0, group_size=1, num_inference_steps=4)
    from dpok_cli.engine.sampling.sampler import Sampler

    sampler = Sampler(model, config)
    texts = model.encode(config.prompts, config.negative_prompt)
    prompt = torch.zeros(2, dtype=torch.long)
    drawn = Trajectories.cat(list(rollout(sampler, texts, prompt, [1, 2], whole=False)))
    steps, seeds = torch.tensor([[0, 2], [3, 1]]), torch.tensor([[5, 6], [7, 8]])
    rewards, advantages = torch.tensor([0.1, 0.2]), torch.tensor([[9.0, 1.0], [9.0, -1.0]])
    prompts = torch.tensor([[0, 1], [1, 0]])
    made = noised_images(sampler, texts, drawn, rewards, advantages, steps, seeds, prompts, 1.0)
    assert made.prompt.tolist() == [0, 1, 1, 0]
    assert made.step.tolist() == [0, 2, 3, 1]
    assert made.reward.tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert made.advantage.tolist() == [1.0, 1.0, -1.0, -1.0]
    for row, (sample, step, seed) in enumerate([(0, 0, 5), (0, 2, 6), (1, 3, 7), (1, 1, 8)]):
        noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))
        alpha_bar = model.base.scheduler.alphas_cumprod[sampler.denoising.timesteps[step]]
        noised = alpha_bar.sqrt() * drawn.latents[sample, -1] + (1 - alpha_bar).sqrt() * noise
        torch.testing.assert_close(made.latents[row], noised)
        torch.testing.assert_close(made.target[row], noise)
    output = sampler.predict(made.latents, made.step, texts[made.prompt], 1.0)
    torch.testing.assert_close(made.old_output, output.detach())
    assert not made.old_output.requires_grad


def test_before_the_first_update_nothing_has_changed(make_config, model, green, rl_loop):
    config = make_config(objective="nft", eta=0.0, group_size=1, updates_per_round=1)
    loop = rl_loop(config, model, green)
    first, second = loop.advance(1), loop.advance(2)
    assert first["change"] <= 1e-12
    assert first["kl"] <= 1e-12  # the adapter changes nothing yet
    assert second["kl"] > 1e-12
    assert first["loss"] > 0


def test_examples_of_a_round_do_not_depend_on_the_batch_that_they_are_made_in(
    make_config, make_model, green, rl_loop
):
    made = []
    for batch in (1, 3):
        config = make_config(objective="nft", eta=0.0, group_size=1, sample_batch_size=batch)
        loop = rl_loop(config, make_model(), green)
        loop.advance(1)
        made.append(loop.buffer.examples)
    for name in ("latents", "target", "old_output", "step", "advantage"):
        torch.testing.assert_close(
            getattr(made[0], name), getattr(made[1], name), rtol=1e-4, atol=1e-5
        )


def test_without_a_clip_of_the_advantage_there_are_no_weights(make_config):
    with pytest.raises(InputError, match="--advantage-clip 0.0: must be > 0 with --objective nft"):
        make_config(objective="nft", advantage_clip=0.0)


def test_levels_are_of_all_steps_that_leave_enough_of_the_image(make_config, model, rl_loop, green):
    def objective(**changes):
        settings = dict(objective="nft", eta=0.0, group_size=1, num_inference_steps=8) | changes
        return rl_loop(make_config(**settings), model, green).objective

    def levels(**changes):
        return objective(**changes).levels.tolist()

    signal = objective().sampler.denoising.signal
    assert levels(least_signal=0.0, timestep_fraction=0.5) == [*range(8)]
    least = (signal[1] + signal[2]).item() / 2
    assert levels(least_signal=least, timestep_fraction=0.5) == [2, 3, 4, 5, 6, 7]
    # None leaves as much: the cleanest.
    assert levels(least_signal=0.9999, timestep_fraction=0.5) == [7]
    # As many examples of a sample as steps are trained on, at the levels in turn.
    kept = objective(least_signal=least, timestep_fraction=0.5)
    chosen = kept.choose(3, torch.Generator())[:, :, 0]
    assert chosen.tolist() == [[2, 3, 4, 5], [6, 7, 2, 3], [4, 5, 6, 7]]


def test_a_share_of_the_prompts_is_dropped_with_guidance_alone(make_config, model, rl_loop, green):
    def rows(guidance):
        config = make_config(
            objective="nft",
            eta=0.0,
            group_size=1,
            samples_per_round=64,
            guidance_scale=guidance,
            prompt_dropout=0.25,
        )
        loop = rl_loop(config, model, green)
        random = torch.Generator().manual_seed(0)
        return loop.objective.choose(64, random)[:, :, 2].float().mean().item()

    assert rows(1.0) == 0.0
    assert 0.15 < rows(3.0) < 0.35


def test_what_is_dropped_is_the_negative_prompts(make_config, model, rl_loop, green):
    config = make_config(
        objective="nft", eta=0.0, group_size=1, guidance_scale=3.0, prompt_dropout=0.5
    )
    loop = rl_loop(config, model, green)
    loop.advance(1)
    prompts = {*loop.buffer.examples.prompt.tolist()}
    assert len(config.prompts) in prompts
    negative = loop.objective.texts[torch.tensor([len(config.prompts)])].prompts.embeds
    assert torch.equal(negative, loop.conditioning.negative.embeds)
