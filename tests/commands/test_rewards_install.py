"""`dpok rewards install`, and runs with a reward in an environment of its own."""

import json
import os
import signal
from pathlib import Path

import pytest

from dpok_cli.inputs import CACHE
from support.isolated import Isolated, is_alive, pids
from support.waiting import wait_for

SPEC = "isolated:log=pids"


@pytest.fixture
def empty(install, tmp_path, monkeypatch):
    """No environment is installed, and the reward is a plugin's."""
    install(Isolated)
    monkeypatch.setenv(CACHE, str(tmp_path))
    return Isolated.environment.folder("isolated")


def of_the_list(dpok):
    listed = json.loads(dpok("rewards", "--json").out)["rewards"]
    return next(facts for facts in listed if facts["name"] == "isolated")


def test_it_is_installed_once_and_the_list_says_so(dpok, empty, isolated_worker, monkeypatch):
    missing = dpok("rewards", "check", SPEC)
    assert missing.code == 2
    assert missing.err == (
        "Error: Reward 'isolated' needs an environment of its own, which is not installed:"
        " dpok rewards install isolated\n"
    )
    needs = {"requirements": [], "python": [], "shared": ["pillow"], "folder": str(empty)}
    assert of_the_list(dpok)["environment"] == needs | {"is_here": False}
    assert of_the_list(dpok)["weights"] == "no environment"
    shown = dpok("rewards", "show", "isolated").out
    assert "Environment: not installed: dpok rewards install isolated\n" in shown

    code, out, err = dpok("rewards", "install", "isolated")
    assert (code, out) == (0, f"isolated is installed in {empty}\n")
    assert err == f"Building {empty}; what pip says is in its install.log.\n"
    assert of_the_list(dpok)["environment"] == needs | {"is_here": True}
    assert of_the_list(dpok)["weights"] == "none needed"
    assert f"Environment: {empty}\n" in dpok("rewards", "show", "isolated").out
    assert dpok("rewards", "install", "isolated") == (0, out, "")
    monkeypatch.setattr(Isolated, "worker", isolated_worker)
    checked = dpok("rewards", "check", SPEC, "--json")
    assert json.loads(checked.out)["scores"] == [5.0, 132.0]


HOLDS = """
import sys
import time
from pathlib import Path
from dpok_cli.engine.runs.lock import one_writer

with one_writer(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_of_two_installs_one_is_refused(dpok, empty, python):
    empty.parent.mkdir()
    other = python("-c", HOLDS, empty.parent, empty.name)
    other.wait_for_line("held")
    code, out, err = dpok("rewards", "install", "isolated")
    assert (code, out) == (2, "")
    assert err == f"Error: Another dpok is writing to {empty}: wait until it ends.\n"
    assert not empty.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("judge",), "Reward 'judge' needs no environment of its own: use it as it is."),
        (("isolate",), "Unknown reward 'isolate'. Did you mean 'isolated'"),
        (("isolated", "--python=no-such-python"), "no-such-python is none: install one, or name"),
    ],
)
def test_what_cannot_be_installed(dpok, empty, arguments, message):
    code, out, err = dpok("rewards", "install", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not empty.exists()


def metrics(run):
    lines = Path("runs", run, "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if "seconds" not in key}
        for line in lines
    ]


@pytest.mark.usefixtures("environments")
def test_a_run_whose_worker_dies_ends_as_an_undisturbed_one(train, install, tmp_path):
    install(Isolated)
    flags = (f"--reward={SPEC}", "--prompt=die once", "--evaluation-samples=0")
    killed = train("train-rl", *flags, "--name=killed")
    assert killed.code == 0, killed.err
    line = "isolated: its worker was ended by SIGKILL; starting another."
    assert line in killed.err.splitlines()
    first, _ = pids(tmp_path / "pids")
    Path("pids").write_text(f"{first}\n")
    assert train("train-rl", *flags, "--name=undisturbed").code == 0
    assert len(pids(tmp_path / "pids")) == 2  # of the earlier run, and its own
    assert metrics("killed") == metrics("undisturbed")
    assert metrics("killed")[0]["reward/isolated"] > 8


PLUGIN = """
import os
from pathlib import Path
from dpok_cli import hookimpl
from support.isolated import Isolated

Isolated.worker = Path({worker!r})

@hookimpl
def register_rewards(register):
    register(Isolated)
"""
DPOK = """
import sys
sys.path.insert(0, sys.argv[1])
from dpok_cli import cli
sys.exit(cli.run(sys.argv[2:]))
"""


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks processes up in /proc")
@pytest.mark.usefixtures("environments")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_worker_outlives_a_run(
    number, code, python, install, isolated_worker, pipeline_folder, tmp_path
):
    site = install(source=PLUGIN.format(worker=str(isolated_worker)))
    flags = (
        f"--model={pipeline_folder} --reward={SPEC} --prompt=a --rounds=1000 --samples-per-round=2"
        " --num-inference-steps=2 --batch-size=2 --updates-per-round=1 --lora-rank=2 --name=long"
        " --evaluation-samples=0 --sample-every=0 --tracker= --device=cpu"
    ).split()
    process = python("-c", DPOK, site, "train-rl", *flags)
    record = tmp_path / "runs" / "long" / "metrics.jsonl"
    wait_for(lambda: process.code is not None or (record.exists() and record.read_text()))
    (pid,) = pids(tmp_path / "pids")
    assert is_alive(pid), process.err
    process.send(number)
    assert process.wait() == code, process.err
    wait_for(lambda: not is_alive(pid))
