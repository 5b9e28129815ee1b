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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            (
                dict(objective=objective, kl_in="reward"),
                "--kl-in 'reward': must be loss without --objective dpok, whose steps have the"
                " log-ratio.",
            )
            for objective in ("mixed", "nft")
        ),
        (
            dict(objective="dpok", kl_in="reward", mix="advantages"),
            "--mix 'advantages': must be rewards with --kl-in reward, which takes the penalty off"
            " their sum.",
        ),
        *(
            (
                dict(mix="advantages", advantage=advantage),
                "--mix 'advantages': must be rewards without --advantage prompt, whose unit makes"
                " rewards comparable.",
            )
            for advantage in ("reward", "value")
        ),
        *(
            (
                dict(objective=objective, advantage_clip=0.0),
                f"--advantage-clip 0.0: must be > 0 with --objective {objective}, whose weights it"
                " scales.",
            )
            for objective in ("nft", "mixed")
        ),
        (
            dict(objective="nft", advantage="value"),
            "--advantage 'value': must be prompt or reward with --objective nft: the value function"
            " is of transitions.",
        ),
        (
            dict(objective="nft", eta=0.0, group_size=2),
            "--group-size 2: must be 1 with --objective nft and --eta 0: samples of one x_T would"
            " be equal.",
        ),
        (
            dict(objective="mixed", kl="gaussian"),
            "--kl 'gaussian': must be epsilon with --objective mixed, whose KL is that of"
            " DiffusionNFT.",
        ),
        (
            dict(objective="dpok", timestep_choice="random"),
            "--timestep-choice 'random': must be noisiest with --noise-window, which leaves no"
            " noise elsewhere.",
        ),
    ],
)
def test_settings_that_exclude_each_other(given, message):
    with pytest.raises(InputError) as caught:
        TrainRLConfig(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "given",
    [
        dict(objective="dpok", kl_in="reward"),
        dict(objective="dpok", advantage_clip=0.0),
        dict(objective="dpok", kl="gaussian"),
        dict(objective="dpok", timestep_choice="random", noise_window=False),
        dict(mix="advantages"),
        dict(advantage="value"),
        dict(objective="nft", eta=0.0, group_size=1),
        dict(objective="nft", eta=0.0, group_size=2, advantage="reward"),
        dict(objective="nft", eta=0.5, group_size=2),
    ],
)
def test_settings_that_go_together(given):
    config = TrainRLConfig(**given)
    assert {key: getattr(config, key) for key in given} == given


def test_mixed_advantages_are_of_the_prompt():
    assert TrainRLConfig(mix="advantages").advantage == "prompt"


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
