import dataclasses
import sys

import pytest

from dpok_cli.commands.train_rl import batch_arithmetic
from dpok_cli.config import TrainRLConfig, resolve
from dpok_cli.errors import InputError, RewardError
from dpok_cli.rewards import manager

PROMPT = ("--prompt", "a green rabbit")


def record(number, **changes):
    return {
        "round": float(number),
        "reward/mean": number / 10,
        "reward/std": 0.5,
        "kl": 0.0,
        "ratio/mean": 1.0,
        "ratio/first_max_dev": 0.0,
        "clip_fraction": 0.0,
        "seconds/rollout": 1.0,
        "seconds/reward": 1.0,
        "seconds/update": 1.0,
    } | changes


@pytest.fixture
def trained(engine):
    engine.records = [record(1), record(2)]
    engine.summary = {
        "before": {"reward": 0.5, "judge": 0.25},
        "after": {"reward": 1.0, "judge": 0.75},
    }
    return engine


def test_tells_the_run_on_stderr_and_its_result_on_stdout(trained, dpok, tmp_path):
    code, out, err = dpok("train-rl", *PROMPT, "--name", "rabbit", "--rounds", "2")

    assert code == 0
    lines = err.splitlines()
    assert "bundled tiny model" in lines[0]
    assert "--preset sd15" in lines[0]
    assert lines[1].startswith("A round: 24 images x 20 steps; 240 of 480 transitions")
    assert lines[2] == "Run folder: runs/rabbit"
    assert [line[:10] for line in lines[3:]] == ["round 1/2 ", "round 2/2 "]
    rows = [line.split() for line in out.splitlines()]
    assert rows == [
        ["before", "after", "change"],
        ["judge", "0.250", "0.750", "+0.500"],
        ["Adapter:", "runs/rabbit/adapter"],
        ["Next:", "dpok", "sample", "--run", "runs/rabbit", "--before"],
    ]
    assert (tmp_path / "runs/rabbit/plots/metrics.png").is_file()


def test_flags_reach_the_engine(trained, dpok):
    flags = ("--reward", "judge=0.5", "--reward", "image-reward:model=tiny", "--alpha", "3")
    assert dpok("train-rl", *PROMPT, *flags, "--gradient-checkpointing").code == 0
    config = TrainRLConfig(
        prompts=("a green rabbit",),
        rewards=("judge=0.5", "image-reward:model=tiny"),
        alpha=3.0,
        gradient_checkpointing=True,
    )
    assert trained.calls == [
        ("check", "tiny"),
        ("load", config, None),
        ("train_rl", config, ("judge", "image-reward")),
        ("compare", config, ("judge", "image-reward"), None),
    ]


@pytest.mark.parametrize("flags", [("--preset", "tiny"), ("--model", "some/model")])
def test_what_was_chosen_needs_no_telling(flags, trained, dpok):
    assert "bundled" not in dpok("train-rl", *PROMPT, *flags).err


def test_what_the_engine_warns_of_is_told(trained, dpok):
    trained.warned = ["The checkpoint 000002 is damaged."]
    err = dpok("train-rl", *PROMPT).err
    assert err.splitlines()[3] == "Warning: The checkpoint 000002 is damaged."
    assert "Warning" not in dpok("train-rl", *PROMPT, "--quiet").err


def test_a_plugin_that_was_left_out_is_told(trained, dpok, monkeypatch):
    failures = {"dpok-broken (broken.plugin)": "ImportError: no [module]"}
    found = dataclasses.replace(manager.registry(), failures=failures)
    monkeypatch.setattr(manager, "registry", lambda: found)
    assert dpok("train-rl", *PROMPT).err.splitlines()[1] == (
        "Warning: reward plugin dpok-broken (broken.plugin) was left out: ImportError: no [module]"
    )


def test_quiet_prints_the_result_only(trained, dpok):
    code, out, err = dpok("train-rl", *PROMPT, "--quiet")
    assert (code, err) == (0, "")
    assert "judge" in out


def test_several_rewards_are_shown_with_their_sum(trained, dpok):
    flags = ("--reward", "judge=2", "--reward", "image-reward:model=tiny")
    rows = [line.split() for line in dpok("train-rl", *PROMPT, *flags).out.splitlines()]
    assert rows[1:3] == [
        ["reward", "0.500", "1.000", "+0.500"],
        ["judge", "0.250", "0.750", "+0.500"],
    ]


@pytest.mark.parametrize(
    ("flags", "held_out"),
    [
        (PROMPT, ("judge",)),
        ((*PROMPT, "--reward", "judge"), None),
        ((*PROMPT, "--prompt", "justice for all"), None),
        ((*PROMPT, "--model", "some/model"), None),
    ],
)
def test_the_judge_is_heard_but_not_trained_for(flags, held_out, trained, dpok):
    dpok("train-rl", *flags)
    assert trained.calls[-1][3] == held_out


def test_without_an_evaluation_there_is_no_table(trained, dpok):
    trained.summary = {"seeds": []}
    out = dpok("train-rl", *PROMPT, "--evaluation-samples", "0").out
    assert [line.split(":")[0] for line in out.splitlines()] == ["Adapter", "Next"]


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(engine, dpok, tmp_path, monkeypatch):
    def load(*_):
        raise InputError("No such model.")

    monkeypatch.setattr(sys.modules["dpok_cli.engine.bases.model"], "load", load)
    result = dpok("train-rl", *PROMPT)
    assert (result.code, result.out) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"), [(RewardError("judge: broke"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_run_that_stops_keeps_its_plot(error, code, trained, dpok, tmp_path):
    trained.fail = error
    result = dpok("train-rl", *PROMPT, "--name", "x")
    assert (result.code, result.out) == (code, "")
    assert (tmp_path / "runs/x/plots/metrics.png").is_file()
    said = (
        "Error: judge: broke"
        if code == 1
        else "Interrupted; go on with: dpok train-rl --resume runs/x"
    )
    assert result.err.splitlines()[-1] == said


@pytest.mark.parametrize(
    ("preset", "changes", "text"),
    [
        (
            "tiny",
            {},
            "A round: 24 images x 20 steps; 240 of 480 transitions, in 4 updates of 60."
            " Rounds: 60, with 1440 images and 240 updates in all.",
        ),
        (
            "sd15",
            {},
            "A round: 10 images x 50 steps; 500 of 500 transitions, drawn from the last 1000, in 5"
            " updates of 48 (4 x 12). Rounds: 2000, with 20000 images and 10000 updates in all.",
        ),
        (
            "tiny",
            {"samples_per_round": 2, "num_inference_steps": 5, "rounds": 1},
            "A round: 2 images x 5 steps; 4 of 10 transitions, in 4 updates of 4."
            " Rounds: 1, with 2 images and 4 updates in all.",
        ),
    ],
)
def test_batch_arithmetic(preset, changes, text):
    assert batch_arithmetic(resolve(TrainRLConfig, preset, **changes)) == text
