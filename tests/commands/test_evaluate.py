"""`dpok evaluate` with the real engine, on a very small model."""

import json
from pathlib import Path

import pytest

from dpok_cli import config as settings
from dpok_cli.engine.rl.settings import TrainRLConfig
from support.rewards import Redness
from support.waiting import wait_for

REWARDS = ("jpeg-incompressibility", "jpeg-compressibility")


@pytest.fixture
def make_run(adapters, pipeline_folder):
    """Make a run folder of the small pipeline in runs/."""

    def make(name="red", adapter="shaken", **changes):
        run = Path("runs", name)
        run.mkdir(parents=True)
        config = TrainRLConfig(
            **{
                "model": str(pipeline_folder),
                "prompts": ("a red cat",),
                "rewards": (REWARDS[0],),
                "num_inference_steps": 3,
                "guidance_scale": 1.0,
                "device": "cpu",
            }
            | changes
        )
        (run / "config.toml").write_text(settings.to_toml(config))
        (run / "adapter").symlink_to(adapters[adapter])
        return run

    return make


FAST = ("--samples", "4", "--resamples", "100", "--device", "cpu", "--sample-batch-size", "3")
REWARD = ("--reward", REWARDS[0], "--reward", REWARDS[1])


def results_in(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def rows(results, **keys):
    return [row for row in results["rows"] if keys.items() <= row.items()]


def test_the_newest_run_on_unseen_prompts(dpok, tmp_path, make_run):
    run = make_run()
    result = dpok("evaluate", "--unseen-prompts", *FAST, *REWARD)
    assert result.code == 0, result.err
    assert result.err.splitlines()[:3] == [
        "Unseen: a red rabbit",
        "Unseen: a red dog",
        "Unseen: a red wolf",
    ]
    (folder,) = run.glob("evaluation-*")
    assert result.err.splitlines()[3] == f"Evaluation folder: {folder}"
    assert result.out.splitlines()[-1] == f"Report: {folder / 'report.html'}"
    head, *lines = [line.split()[:3] for line in result.out.splitlines()]
    assert head == ["prompts", "score", "model"]
    assert lines[:2] == [["seen", REWARDS[0], "base"], ["seen", REWARDS[0], "red*"]]
    assert ["unseen", REWARDS[1], "red"] in lines
    results = results_in(folder)
    assert [(each["text"], each["group"], each["category"]) for each in results["prompts"]] == [
        ("a red cat", "seen", "colour"),
        ("a red rabbit", "unseen", "colour"),
        ("a red dog", "unseen", "colour"),
        ("a red wolf", "unseen", "colour"),
    ]
    assert [(each["name"], each["trained_by"]) for each in results["rewards"]] == [
        (REWARDS[0], ["red"]),
        (REWARDS[1], []),
    ]
    # the two rewards are one size, seen from two sides
    (more,) = rows(results, scope="group", group="seen", model="red", measure=REWARDS[0])
    (less,) = rows(results, scope="group", group="seen", model="red", measure=REWARDS[1])
    assert more["mean"] == less["mean"]
    assert more["difference"] == less["difference"] != 0
    assert more["win_rate"] == 1 - less["win_rate"]
    # a rise of the one is a fall of the other; with four images it must be a clear one
    assert bool(results["warnings"]) == any(
        row["difference_low"] > 0
        for row in rows(results, scope="group", model="red", measure=REWARDS[0])
    )
    for file in ("results.csv", "report.html", "plots/means.png", "plots/win_rates.png"):
        assert (folder / file).stat().st_size > 0
    assert not (folder / "human.html").exists()
    assert len(list(folder.glob("images/*/*/*.png"))) == 2 * 4 * 4


def test_an_adapter_that_changes_nothing_ties_with_the_base(dpok, tmp_path, make_run):
    make_run(adapter="none")
    result = dpok("evaluate", *FAST, *REWARD, "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    results = json.loads(result.out)
    tuned = rows(results, model="red")
    assert len(tuned) == 2 * 4  # of the group and of its prompt: two rewards, kl, pixel_distance
    for row in tuned:
        if row["measure"] in REWARDS:
            assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, 0, 0)
            assert (row["win_rate"], row["win_low"], row["win_high"]) == (0.5, 0.5, 0.5)
        if row["measure"] == "kl":
            assert row["mean"] == 0
    assert results["warnings"] == []


def test_several_models_side_by_side(dpok, make_run, adapters):
    make_run("red")
    make_run("blue", adapter="none", prompts=("a blue cat",), rewards=("jpeg-compressibility",))
    both = ("--run", "red", "--run", "mine=blue", "--adapter", f"bare={adapters['shaken']}")
    result = dpok("evaluate", *both, *FAST, *REWARD, "--output", "here")
    assert result.code == 0, result.err
    results = results_in("here")
    assert [each["name"] for each in results["models"]] == ["base", "red", "mine", "bare"]
    assert [each["trained_by"] for each in results["rewards"]] == [["red"], ["mine"]]
    assert [each["text"] for each in results["prompts"]] == ["a red cat", "a blue cat"]
    for row in rows(results, model="red", measure=REWARDS[0]):
        (same,) = rows(
            results, model="bare", **{key: row[key] for key in ("scope", "prompt", "measure")}
        )
        assert {**same, "model": "red"} == row


def test_categories_of_a_file_have_a_table(dpok, make_run):
    make_run()
    entries = {"a cat": "simple", "two dogs and a cat": "hard", "a lion": "simple"}
    file = {prompt: {"category": category} for prompt, category in entries.items()}
    Path("bench.json").write_text(json.dumps(file))
    result = dpok("evaluate", "--prompts", "bench.json", *FAST, *REWARD, "--output", "here")
    assert result.code == 0, result.err
    found = {
        (row["group"], row["category"], row["n"])
        for row in rows(results_in("here"), scope="category", model="red", measure=REWARDS[0])
    }
    assert found == {("unseen", "simple", 8), ("unseen", "hard", 4)}
    assert "unseen, simple" in result.out
    assert "unseen, hard" in result.out


def test_unseen_prompts_of_ones_own(dpok, make_run):
    make_run()
    Path("mine.txt").write_text("a purple yak\n")
    result = dpok("evaluate", "--unseen-prompts-file", "mine.txt", *FAST, *REWARD, "--output", "o")
    assert result.err.splitlines()[0] == "Unseen: a purple yak"
    assert [each["group"] for each in results_in("o")["prompts"]] == ["seen", "unseen"]


def test_another_setting_needs_another_folder(dpok, make_run):
    make_run()
    assert dpok("evaluate", *FAST, *REWARD, "--output", "here").code == 0
    before = Path("here/results.json").read_bytes()
    result = dpok("evaluate", *FAST, *REWARD, "--output", "here", "--eta", "0.5")
    assert (result.code, result.out) == (2, "")
    assert "here was made with other settings: --eta 1.0 there, 0.5 now" in result.err
    assert Path("here/results.json").read_bytes() == before
    again = dpok("evaluate", *FAST, *REWARD, "--output", "here")
    assert again.code == 0
    assert Path("here/results.json").read_bytes() == before


def test_the_page_for_people_is_made_on_demand(dpok, make_run):
    make_run()
    assert dpok("evaluate", *FAST, *REWARD, "--output", "here").code == 0
    result = dpok("evaluate", *FAST, *REWARD, "--output", "here", "--human")
    assert result.out.splitlines()[-1] == f"Page for raters: {Path('here/human.html')}"
    key = json.loads(Path("here/human-key.json").read_text())
    (name,) = key["sets"]
    answers = {name: {"alignment": "tie", "quality": "left"}}
    for rater in ("one", "two"):
        votes = {"study": key["study"], "rater": rater, "answers": answers}
        Path(f"{rater}.json").write_text(json.dumps(votes))
    counted = dpok("evaluate", "--votes", "one.json", "two.json", "--output", "here")
    assert counted.code == 0, counted.err
    lines = [line.split() for line in counted.out.splitlines()]
    assert lines[1][:4] == ["red", "alignment", "seen", "0.500"]
    wins = "1.000" if key["sets"][name]["left"] == "red" else "0.000"
    assert lines[2][:4] == ["red", "quality", "seen", wins]
    assert lines[-1] == ["2", "raters"]


@pytest.mark.slow
def test_a_kill_in_the_middle_changes_nothing(dpok, make_run, python):
    run = make_run()
    flags = ("--run", str(run), *FAST, *REWARD, "--quiet", "--samples", "16")
    process = python("-m", "dpok_cli", "evaluate", *flags, "--output", "cut")
    scores = Path("cut/scores.jsonl")
    wait_for(lambda: process.code is not None or (scores.exists() and scores.read_text()))
    process.kill()
    kept = len(scores.read_text().splitlines())
    assert not Path("cut/results.json").exists()
    assert 0 < kept < 32
    for folder in ("cut", "whole"):
        result = dpok("evaluate", *flags, "--output", folder)
        assert result.code == 0, result.err
    for file in ("results.json", "results.csv"):
        assert Path("cut", file).read_bytes() == Path("whole", file).read_bytes()


def test_the_rewards_that_the_run_was_trained_on_are_the_default(dpok, make_run, install):
    install(Redness)
    make_run(rewards=("redness=3",))
    assert dpok("evaluate", *FAST, "--output", "here").code == 0
    (reward,) = results_in("here")["rewards"]
    assert (reward["spec"], reward["trained_by"]) == ("redness", ["red"])
