from dataclasses import dataclass

import pytest

from dpok_cli.config import RLConfig
from dpok_cli.config.fields import flag, settings_of
from dpok_cli.engine.rl.objectives.dpok import DPOKSettings
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.errors import InputError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eta", 0.0),
        *(("rounds", value) for value in (0, -3)),
        ("samples_per_round", 0),
        *(("group_size", value) for value in (0, -4)),
        *(("timestep_fraction", value) for value in (0.0, 1.01, float("nan"))),
        ("timestep_choice", "first"),
        ("buffer_size", -1),
        *(("alpha", value) for value in (0.0, -1.0, float("nan"), float("inf"))),
        *(("beta", value) for value in (-0.1, float("nan"), float("inf"))),
        ("kl", "l2"),
        *(("ratio_clip", value) for value in (0.0, float("nan"))),
        ("clip_form", "none"),
        ("advantage", "gae"),
        ("mix", "scores"),
        *(("advantage_clip", value) for value in (-1.0, float("inf"))),
        ("updates_per_round", 0),
        ("value_learning_rate", 0.0),
        ("value_updates", 0),
        ("value_batch_size", 0),
    ],
)
def test_out_of_range(key, value):
    with pytest.raises(InputError, match=f"^{flag(key)} "):
        TrainRLConfig(**{key: value})


def test_on_the_edge_of_the_range():
    edge = {"eta": 1.0, "timestep_fraction": 1.0, "beta": 0.0, "buffer_size": 0}
    config = TrainRLConfig(**edge)
    assert {key: getattr(config, key) for key in edge} == edge


def test_the_objective_needs_noise_and_the_loop_does_not():
    with pytest.raises(InputError) as caught:
        TrainRLConfig(eta=0.0)
    assert str(caught.value) == (
        "--eta 0.0: must be > 0 to train (without noise there is no policy)."
    )
    assert RLConfig(eta=0.0).eta == 0.0


@pytest.mark.parametrize("advantage", ["reward", "value"])
def test_advantages_are_mixed_where_rewards_have_a_unit(advantage):
    assert TrainRLConfig(mix="advantages").advantage == "prompt"
    with pytest.raises(InputError) as caught:
        TrainRLConfig(mix="advantages", advantage=advantage)
    assert str(caught.value) == (
        "--mix 'advantages': must be rewards without --advantage prompt, whose unit makes rewards"
        " comparable."
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            dict(objective="mixed"),
            "--kl-in 'reward': must be loss without --objective dpok, whose steps have the"
            " log-ratio.",
        ),
        (
            dict(objective="nft"),
            "--kl-in 'reward': must be loss without --objective dpok, whose steps have the"
            " log-ratio.",
        ),
        (
            dict(objective="dpok", mix="advantages"),
            "--mix 'advantages': must be rewards with --kl-in reward, which takes the penalty off"
            " their sum.",
        ),
    ],
)
def test_the_kl_in_the_reward_is_that_of_the_policy_gradient(given, message):
    with pytest.raises(InputError) as caught:
        TrainRLConfig(kl_in="reward", **given)
    assert str(caught.value) == message
    TrainRLConfig(kl_in="reward", objective="dpok")


def test_the_objectives_settings_are_a_mixin_that_any_loop_can_take():
    @dataclass(frozen=True)
    class Other(DPOKSettings, RLConfig):
        pass

    assert {*settings_of(Other)} - {*settings_of(RLConfig)} == {
        *("alpha", "beta", "kl_fraction", "kl_target", "kl", "kl_in", "ratio_clip"),
        "clip_form",
    }
    assert (Other().batch_size, Other().learning_rate, Other().lr_schedule) == (48, 5e-3, "cosine")


@pytest.mark.parametrize(
    ("steps", "fraction", "transitions"),
    [(20, 0.5, 240), (20, 0.01, 24), (3, 1.0, 72), (5, 0.3, 48)],
)
def test_transitions_per_round(steps, fraction, transitions):
    config = TrainRLConfig(num_inference_steps=steps, timestep_fraction=fraction)
    assert config.transitions_per_round == transitions
