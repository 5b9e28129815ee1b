"""The run folder: made once, found again, never half written."""

import json
import os

import pytest

from dpok_cli import __version__
from dpok_cli.config import resolve
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.runs.files import write_text
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.errors import InputError


def config(folder, **changes):
    return TrainRLConfig(runs_dir=str(folder), prompts=("a",), **changes)


def test_a_named_run_has_its_config(tmp_path):
    asked = config(tmp_path / "new" / "runs", name="one", rounds=7)
    run = RunFolder.create(asked)
    assert run.path == tmp_path / "new" / "runs" / "one"
    assert sorted(file.name for file in run.path.iterdir()) == ["config.toml", "run.json"]
    assert json.loads(run.record.read_text()) == {"command": "train-rl", "dpok": __version__}
    assert run.command() == "train-rl"
    assert resolve(TrainRLConfig, file=run.config) == asked
    assert run.read_config()["rounds"] == 7


def test_a_run_without_a_name_gets_a_new_folder_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr("dpok_cli.engine.runs.files._now", lambda: "20260102-030405")
    names = [RunFolder.create(config(tmp_path)).path.name for _ in range(3)]
    assert names == [
        "20260102-030405-train-rl",
        "20260102-030405-train-rl-2",
        "20260102-030405-train-rl-3",
    ]


def test_a_name_that_is_taken_is_refused(tmp_path):
    RunFolder.create(config(tmp_path, name="one"))
    before = sorted(tmp_path.rglob("*"))
    for refuse in (RunFolder.check_free, lambda it: RunFolder.create(it)):
        with pytest.raises(InputError, match="one already exists: give another --name"):
            refuse(config(tmp_path, name="one"))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file already exists"):
        RunFolder.check_free(config(tmp_path, name="file"))


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "one").mkdir()
    assert RunFolder.create(config(tmp_path, name="one")).config.is_file()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot make a run folder in .*file"):
        RunFolder.create(config(tmp_path / "file"))


def test_a_run_is_found_by_path_by_name_and_as_the_latest(tmp_path):
    runs = [RunFolder.create(config(tmp_path, name=name)) for name in ("one", "two")]
    os.utime(runs[0].config, (2e9, 2e9))
    os.utime(runs[1].config, (1e9, 1e9))
    assert RunFolder.open(str(runs[1].path)).path == runs[1].path
    assert RunFolder.open("two", str(tmp_path)).path == runs[1].path
    assert RunFolder.open("latest", str(tmp_path)).path == runs[0].path


def test_a_run_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        with pytest.raises(InputError, match=f"There is no run {name}"):
            RunFolder.open(name, str(tmp_path))
    with pytest.raises(InputError, match=r"There is no run in .* yet. Train one: dpok train-rl."):
        RunFolder.open("latest", str(tmp_path))


def test_metrics_are_lines_of_json(tmp_path):
    run = RunFolder(tmp_path)
    assert run.history() == []
    run.append({"round": 1, "kl": 0.5})
    run.append({"round": 2, "kl": 1e-9})
    assert run.history() == [{"round": 1, "kl": 0.5}, {"round": 2, "kl": 1e-9}]
    assert run.metrics.read_text() == '{"round": 1, "kl": 0.5}\n{"round": 2, "kl": 1e-09}\n'


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(InputError, match="Cannot read .*config.toml: No such file"):
        run.read_config()
    run.config.write_text("rounds = ")
    with pytest.raises(InputError, match="config.toml cannot be read"):
        run.read_config()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_text(file, "old")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def fail(*_):
        raise OSError

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):  # noqa: PT011
        write_text(file, "new")
    assert file.read_text() == "old"


def test_a_summary(tmp_path):
    run = RunFolder(tmp_path)
    run.write_summary({"before": {"reward": 0.5}})
    assert json.loads(run.summary.read_text()) == {"before": {"reward": 0.5}}


def test_a_run_of_an_older_dpok_does_not_say_which_command_made_it(tmp_path):
    run = RunFolder.create(config(tmp_path, name="one"))
    run.record.unlink()
    with pytest.raises(InputError, match=r"older dpok made it: it can be sampled and evaluated"):
        run.command()
    run.record.write_text("[]")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        run.command()
