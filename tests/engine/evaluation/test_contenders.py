"""Which models are compared, and the settings that their runs share."""

import pytest

from dpok_cli.engine.evaluation.contenders import Contender, find_contenders, shared_settings
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.errors import InputError


def test_the_newest_run_that_has_an_adapter(make_run, runs_dir):
    make_run("old")
    new = make_run("new", rewards=("judge",))
    make_run("cut-off", adapter=False)
    (found,) = find_contenders([], [], runs_dir)
    assert (found.name, found.adapter) == ("new", new / "adapter")
    assert (found.trained_prompts, found.trained_rewards) == (("a red cat",), ("judge",))


def test_names_and_paths(make_run, runs_dir, tmp_path, least_lora):
    run = make_run("one")
    make_run("two")
    lora = tmp_path / "a=b"
    lora.mkdir()
    (lora / "pytorch_lora_weights.safetensors").write_bytes(least_lora)
    found = find_contenders(["one", f"mine={run}"], [str(lora), f"z={lora}"], runs_dir)
    assert [(each.name, each.adapter) for each in found] == [
        ("one", run / "adapter"),
        ("mine", run / "adapter"),
        ("a=b", lora),
        ("z", lora),
    ]
    assert found[2].config == {}
    (own,) = find_contenders([], [str(run / "adapter")], runs_dir)
    assert (own.name, own.trained_rewards) == ("one", TrainRLConfig().rewards)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["one", "one"], "'one' is taken"),
        (["base=one"], "'base' is taken"),
        (["a/b=one"], "'a/b' is taken or not a plain name"),
        (["none"], "There is no run none"),
        (["bare"], "There is no adapter"),
    ],
)
def test_names_that_cannot_be_used(runs, message, make_run, runs_dir):
    make_run("one")
    make_run("bare", adapter=False)
    with pytest.raises(InputError, match=message):
        find_contenders(runs, [], runs_dir)


def test_no_run_yet(tmp_path):
    with pytest.raises(InputError, match="no run with an adapter in .*dpok train-rl"):
        find_contenders([], [], str(tmp_path))


def test_runs_of_one_kind_share_their_settings(make_run, runs_dir):
    make_run("one", eta=0.5, sample_batch_size=3)
    make_run("two", eta=0.5, prompts=("a dog", "a red cat"), seed=5, rounds=3)
    shared = shared_settings(find_contenders(["one", "two"], [], runs_dir), ())
    assert (shared["eta"], shared["prompts"]) == (0.5, ("a red cat", "a dog"))
    assert not {"seed", "device", "rounds", "rewards"} & set(shared)
    assert shared_settings([Contender("x")], ()) == {}


def test_runs_with_different_sampler_settings_are_not_compared(make_run, runs_dir):
    make_run("one")
    make_run("two", guidance_scale=5.0)
    found = find_contenders(["one", "two"], [], runs_dir)
    with pytest.raises(InputError, match="one and two .* --guidance-scale 3.0 and 5.0"):
        shared_settings(found, ["eta"])
    assert shared_settings(found, ["guidance_scale"])["eta"] == 1.0
