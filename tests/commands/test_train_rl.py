"""`dpok train-rl`: what it prints where, what it leaves, and how it ends."""

import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpok_cli import RewardModel
from dpok_cli.commands._training import kept_adapter
from dpok_cli.commands.train_rl import noiseless_steps
from dpok_cli.engine.rl.settings import TrainRLConfig
from support.rewards import Brightness, Redness
from support.text import numbers, rows


def test_progress_is_on_stderr_and_the_result_on_stdout(train, run, install, tmp_path):
    install(Redness)
    given = ("--reward=redness", "--learning-rate=0.1", "--name=lion", "--patience=0")
    code, out, err = train("train-rl", *given)

    assert code == 0
    first, folder, *rounds = err.splitlines()
    # 2 images of 2 steps, of whose 4 transitions half are trained on, in one update; twice
    assert numbers(first) == [2, 2, 2, 4, 1, 2, 2, 4, 2]
    assert folder.endswith(" runs/lion")
    assert [line[:10] for line in rounds] == ["round 1/2 ", "round 2/2 "]
    metrics = run("lion").metrics
    for line, record in zip(rounds, metrics, strict=True):
        assert f"reward {record['reward/mean']:.3f} ± {record['reward/std']:.3f}" in line
        assert f"kl {record['kl']:.2e}" in line
    assert rows(out) == [
        *run("lion").table(),
        ["Adapter:", "runs/lion/adapter"],
        ["Next:", "dpok", "sample", "--run", "runs/lion", "--before"],
        "For ComfyUI or A1111: dpok export runs/lion --format kohya".split(),
    ]
    assert metrics[1]["kl"] > 0
    before, after = (run("lion").summary[side]["reward"] for side in ("before", "after"))
    assert before != after
    assert (tmp_path / "runs/lion/plots/metrics.png").read_bytes().startswith(b"\x89PNG")


RABBIT = "--prompt=a green rabbit"


def test_the_bundled_model_is_announced_and_its_judge_measures(train, run):
    reward = "--reward=image-reward"
    result = train("train-rl", RABBIT, reward, "--rounds=1", "--name=rabbit", model=None)
    assert result.code == 0, result.err
    hint = result.err.splitlines()[0]
    assert "tiny" in hint
    assert "--preset sd15" in hint
    # The judge is in the table, but not in what was trained for.
    assert {"image-reward", "judge"} <= run("rabbit").summary["after"].keys()
    assert "judge" in [row[0] for row in rows(result.out)]
    assert {key for key in run("rabbit").metrics[0] if key.startswith("reward/")} == {
        *("reward/mean", "reward/std", "reward/image-reward"),
    }


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        # trained for, and so measured once
        (None, ["--preset=tiny", RABBIT, "--reward=judge"]),
        # one of the prompts is none of the tiny world's
        ("tiny", [RABBIT, "--prompt=justice for all"]),
        # another model
        ("small", [RABBIT]),
    ],
)
def test_where_the_judge_is_no_witness(model, flags, train, run, pipeline_folder):
    model = pipeline_folder if model == "small" else model
    result = train("train-rl", *flags, "--rounds=1", "--name=x", model=model)
    assert result.code == 0, result.err
    reward = "judge" if "--reward=judge" in flags else "jpeg-incompressibility"
    apart = {"pixel_distance", "diversity"}
    assert run("x").summary["after"].keys() - apart == {"reward", reward}
    # Who chose the model, by whatever flag, needs no announcement of it.
    assert "--preset" not in result.err


def test_flags_reach_the_run(train, run, pipeline_folder, install):
    install(Redness, Brightness)
    given = ("--reward=redness=0.5", "--reward=brightness=-2", "--alpha=3", "--clip-form=ppo")
    result = train("train-rl", *given, "--gradient-checkpointing", "--name=x", "--rounds=1")
    assert result.code == 0, result.err
    settings = TrainRLConfig(
        model=str(pipeline_folder),
        prompts=("a lion",),
        rewards=("redness=0.5", "brightness=-2"),
        alpha=3.0,
        clip_form="ppo",
        gradient_checkpointing=True,
        name="x",
        rounds=1,
        samples_per_round=2,
        updates_per_round=1,
        num_inference_steps=2,
        guidance_scale=1.0,
        batch_size=2,
        lora_rank=2,
        learning_rate=0.01,
        sample_every=0,
        evaluation_samples=2,
        tracker="",
        device="cpu",
    )
    written = {key: tuple(v) if isinstance(v, list) else v for key, v in run("x").config.items()}
    assert asdict(settings).items() <= written.items()
    (record,) = run("x").metrics
    weighted = 0.5 * record["reward/redness"] - 2 * record["reward/brightness"]
    assert record["reward/mean"] == pytest.approx(weighted, rel=1e-4)
    # Several rewards are shown with their sum.
    names = [row[0] for row in rows(result.out)]
    assert names[1:4] == ["reward", "redness", "brightness"]
    assert rows(result.out)[: len(run("x").table())] == run("x").table()


def test_a_resume_that_is_refused_changes_no_plot(train, dpok):
    assert train("train-rl", "--name=x", "--rounds=2").code == 0
    Path("runs/x/plots/metrics.png").unlink()
    result = dpok("train-rl", "--resume=x", "--rounds=1")
    assert (result.code, "The run already has 2 rounds" in result.err) == (2, True)
    assert not Path("runs/x/plots/metrics.png").exists()


def test_warnings_are_printed_but_not_with_quiet(train, dpok, tmp_path):
    assert train("train-rl", "--name=x", "--evaluation-samples=0").code == 0
    (state,) = (tmp_path / "runs/x/checkpoints/000002").glob("*.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    shutil.copytree("runs/x", "runs/y")
    err = dpok("train-rl", "--resume=x", "--rounds=3").err
    (warning,) = [line for line in err.splitlines() if line.startswith("Warning: ")]
    assert "000002" in warning
    quiet = dpok("train-rl", "--resume=y", "--rounds=3", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")


def test_a_plugin_that_was_left_out_is_named(train, install):
    install(package="dpok-broken", source='raise ImportError("no [module]")')
    result = train("train-rl", "--evaluation-samples=0", "--rounds=1")
    assert result.code == 0
    (warning,) = [line for line in result.err.splitlines() if line.startswith("Warning: ")]
    assert "dpok-broken (plugin_of_dpok_broken) " in warning
    assert warning.endswith(": ImportError: no [module]")


def test_quiet_prints_the_result_only(train, run):
    code, out, err = train("train-rl", "--quiet", "--name=x")
    assert (code, err) == (0, "")
    assert rows(out)[:-3] == run("x").table()
    assert [row[0] for row in rows(out)[-3:]] == ["Adapter:", "Next:", "For"]


def test_without_an_evaluation_there_is_no_table(train):
    out = train("train-rl", "--evaluation-samples=0").out
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "Adapter",
        "Next",
        "For ComfyUI or A1111",
    ]


class Interrupting(RewardModel):
    """Ctrl-C comes while the second batch is scored."""

    name = "interrupting"

    def load(self):
        self.calls = 0

    def score_batch(self, images, prompts):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return images.mean((1, 2, 3))


def test_an_interrupted_run_keeps_its_plot_and_says_how_to_resume(train, run, install):
    install(Interrupting)
    result = train("train-rl", "--reward=interrupting", "--name=x")
    assert (result.code, result.out) == (130, "")
    assert Path("runs/x/plots/metrics.png").stat().st_size > 0
    assert [record["round"] for record in run("x").metrics] == [1]
    assert result.err.splitlines()[-1].endswith(": dpok train-rl --resume runs/x")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        # 24 images x 11 steps: 192 of 264 transitions, in 4 updates of 48; 40 rounds: 960 images,
        # 160 updates
        (["--preset=tiny"], [24, 11, 192, 264, 4, 48, 40, 960, 160]),
        # 500 of 500 transitions, from the last 1000, in 5 updates of 48 (4 x 12)
        (
            ["--preset=sd15", "--no-auto-batch-size"],
            [10, 50, 500, 500, 1000, 5, 48, 4, 12, 2000, 20000, 10000],
        ),
        # the size of a pass is chosen
        (
            ["--preset=sd15"],
            [10, 50, 500, 500, 1000, 5, 48, 2000, 20000, 10000],
        ),
        # no batch is larger than what there is
        (
            ["--samples-per-round=2", "--num-inference-steps=5", "--rounds=1"],
            [2, 5, 4, 10, 4, 4, 1, 2, 4],
        ),
    ],
)
def test_the_arithmetic_of_a_run_is_printed_first(flags, expected, dpok, pipeline_folder):
    # A device that is not there ends it before any of it is done.
    model = f"--model={pipeline_folder}"
    result = dpok("train-rl", "--prompt=a lion", model, *flags, "--device=no-such-device")
    assert result.code == 2
    assert "no-such-device" in result.err.splitlines()[-1]
    assert numbers(result.err.splitlines()[0]) == expected


@pytest.mark.parametrize(
    ("patience", "best", "said"),
    [(2, 5, "Ended after round 15 of 30. adapter/ is that of round 5,"), (2, 15, ""), (0, 5, "")],
)
def test_it_says_which_adapter_is_kept(patience, best, said):
    newest = {"round": 15, "grid/best": best}
    view = SimpleNamespace(newest=newest, records=[{"round": 15}], unit="round", total=30)
    line = kept_adapter(view, patience)
    assert line.startswith(said)
    assert bool(line) == bool(said)


@pytest.mark.parametrize(
    ("settings", "noisy", "said"),
    [
        # 24 images of 20 steps, 8 of them in the window
        ({}, 8, ""),
        ({}, 5, "5 of the 8 steps to train on have noise: a round has 120 transitions."),
        (dict(noise_window=False), 20, ""),
        (dict(noise_window=False), 15, "5 of the 20 steps have no noise, so they are not trained"),
        ({}, 0, ""),
    ],
)
def test_steps_without_noise_are_said(settings, noisy, said):
    line = noiseless_steps(TrainRLConfig(**settings), noisy)
    assert said in line
    assert bool(said) == bool(line)
