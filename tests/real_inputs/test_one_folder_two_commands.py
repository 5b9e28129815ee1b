"""Jobs that were submitted twice, or a run that was resumed while it was still alive."""

import json
from pathlib import Path

import pytest

from dpok_cli.engine.runs import files as files_module
from support.writers import another_writer

REFUSED = "Another dpok is writing to "


def files(folder="."):
    return {
        file: file.read_bytes()
        for file in Path(folder).rglob("*")
        if file.is_file() and not file.name.startswith(".lock")
    }


@pytest.mark.slow
def test_a_run_that_is_alive_is_not_resumed(python, flags, tmp_path):
    alive = python("-m", "dpok_cli", *flags("train-rl", "--name=run", "--rounds=100000"))
    alive.wait_for_line("round 2/")
    second = python("-m", "dpok_cli", "train-rl", "--resume=runs/run")
    assert second.wait() == 2
    assert second.err.splitlines()[-1] == f"Error: {REFUSED}runs/run: wait until it ends."
    assert alive.code is None
    alive.kill()
    third = python("-m", "dpok_cli", "train-rl", "--resume=runs/run", "--rounds=100000")
    third.wait_for_line("round ")
    third.kill()
    lines = (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()
    rounds = [json.loads(line)["round"] for line in lines]
    assert rounds == list(range(1, len(rounds) + 1))


def test_a_refused_resume_writes_nothing(train, dpok):
    train("train-rl", "--name=run")
    before = files()
    with another_writer(Path("runs/run")):
        result = dpok("train-rl", "--resume", "run", "--rounds=3")
    assert (result.code, result.out) == (2, "")
    assert f"{REFUSED}runs/run" in result.err
    assert files() == before


def test_a_set_of_images_is_drawn_by_one_run_at_a_time(train):
    Path("set").mkdir()
    with another_writer(Path("set")):
        result = train("train-sft", "--dataset=set", "--name=second", "--runs-dir=some/runs")
    assert result.code == 2
    assert not Path("some").exists()
    assert f"{REFUSED}{Path('set').resolve()}" in result.err
    assert train("train-sft", "--dataset=set", "--name=second").code == 0


def test_an_evaluation_has_one_writer(train, dpok):
    train("train-rl", "--name=run")
    command = ("evaluate", "--run=run", "--reward=jpeg-compressibility", "--samples=2")
    assert dpok(*command, "--output=here").code == 0
    before = files()
    with another_writer(Path("here")):
        result = dpok(*command, "--output=here")
    assert (result.code, result.out) == (2, "")
    assert f"{REFUSED}here" in result.err
    assert files() == before


def test_samples_that_are_being_drawn_are_not_overwritten(dpok, pipeline_folder):
    Path("here").mkdir()
    command = ("sample", f"--model={pipeline_folder}", "--num-inference-steps=1", "--seeds=0-1")
    with another_writer(Path("here")):
        result = dpok(*command, "--output=here")
    assert (result.code, result.out) == (2, "")
    assert f"{REFUSED}here" in result.err
    assert files("here") == {}
    assert dpok(*command, "--output=here").code == 0
    drawn = files("here")
    assert dpok(*command, "--output=here").code == 0
    assert files("here") == drawn
    other = dpok(*command, "--eta=0", "--output=here")
    assert (other.code, other.out) == (2, "")
    assert "here was made with other settings: --eta 1.0 there, 0.0 now." in other.err
    assert files("here") == drawn


def test_two_sample_commands_in_one_second(dpok, pipeline_folder, monkeypatch):
    command = ("sample", f"--model={pipeline_folder}", "--num-inference-steps=1", "--seeds=0")
    monkeypatch.setattr(files_module, "_now", lambda: "20260102-030405")
    pictures = [dpok(*command).out.strip() for _ in range(2)]
    assert pictures == [
        "samples/20260102-030405/grid.png",
        "samples/20260102-030405-2/grid.png",
    ]
    assert all(Path(picture).is_file() for picture in pictures)


def test_two_runs_of_one_name_do_not_mix(train, monkeypatch):
    """Both find the name free, as neither has made its folder yet."""
    from dpok_cli.engine.runs import folder

    assert train("train-rl", "--name=run").code == 0
    before = files("runs")
    monkeypatch.setattr(folder.RunFolder, "check_free", lambda config: None)
    result = train("train-rl", "--name=run", "--seed=1")
    assert result.code == 2
    assert "runs/run already exists: give another --name" in result.err
    assert files("runs") == before


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft"])
def test_an_export_has_one_writer(form, train, dpok):
    train("train-rl", "--name=run")
    name = "out" if form == "peft" else "out.safetensors"
    Path("new").mkdir()
    export = ("export", "run", f"--format={form}", f"--output=new/{name}")
    with another_writer(Path("new"), file=name):
        result = dpok(*export)
    assert result.code == 2
    assert f"{REFUSED}new/{name}" in result.err
    assert files("new") == {}
    assert dpok(*export).code == 0
    assert [file.name for file in Path("new").iterdir()] == [name]
