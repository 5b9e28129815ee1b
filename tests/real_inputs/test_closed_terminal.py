"""Terminals that are closed, connections that drop, and log readers that end before the run."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpok_cli.engine.training.stop import Stop
from support.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.slow


def hear_hangups():
    """Undo nohup's effect, under which the tests themselves may run."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def endless(flags):
    return flags("train-rl", "--name=run", "--rounds=100000")


@pytest.fixture
def start(endless, tmp_path):
    """Start the endless run as a program of its own, with these streams."""
    started = []

    def start(*prefix, **streams):
        command = [*prefix, sys.executable, "-m", "dpok_cli", *endless]
        started.append(subprocess.Popen(command, cwd=tmp_path, preexec_fn=hear_hangups, **streams))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def rounds(folder):
    file = folder / "runs/run/metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["round"] for line in lines]


def assert_saved(folder):
    done = rounds(folder)
    assert done == list(range(1, len(done) + 1))
    newest = max(int(path.name) for path in Path(folder, "runs/run/checkpoints").iterdir())
    assert newest == done[-1]


def test_a_hangup_saves_as_sigterm_does(python, endless, tmp_path):
    process = python("-m", "dpok_cli", *endless)
    process.wait_for_line("round 2/")
    process.send(signal.SIGHUP)
    assert process.wait(PATIENCE) == 129
    assert process.err.splitlines()[-1] == "Stopped; resume with: dpok train-rl --resume runs/run"
    assert_saved(tmp_path)


def test_a_second_hangup_interrupts_nothing(python, endless, tmp_path):
    """The kernel and the shell may each send one."""
    process = python("-m", "dpok_cli", *endless)
    process.wait_for_line("round 2/")
    for number in (signal.SIGHUP, signal.SIGHUP):
        process.send(number)
    assert process.wait(PATIENCE) == 129
    assert process.err.splitlines()[-1] == "Stopped; resume with: dpok train-rl --resume runs/run"
    assert_saved(tmp_path)


@pytest.fixture
def heard():
    """A hangup is not ignored, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_repeated_signal_ends_a_run_at_once_with_its_own_code(second, heard):
    with Stop() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert (stop.requested(), stop.exit_code) == (True, 129)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert stop.exit_code == 128 + second


def test_a_terminal_that_closes(start, tmp_path):
    ours, theirs = pty.openpty()
    process = start(stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    while len(rounds(tmp_path)) < 2:
        os.read(ours, 65536)  # a terminal shows what it gets
    os.close(ours)  # not the controlling one, so no signal comes: as after `disown`
    before = len(rounds(tmp_path))
    wait_for(lambda: process.poll() is not None or len(rounds(tmp_path)) > before + 2)
    assert process.poll() is None  # it trains on without the terminal
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE) == 129
    assert_saved(tmp_path)


def test_under_nohup_a_hangup_is_ignored(start, tmp_path):
    with (tmp_path / "log").open("w") as log:
        process = start("nohup", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: process.poll() is not None or len(rounds(tmp_path)) >= 1)
        process.send_signal(signal.SIGHUP)
        before = len(rounds(tmp_path))
        wait_for(lambda: process.poll() is not None or len(rounds(tmp_path)) > before + 1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
    assert_saved(tmp_path)


def test_a_log_reader_that_ends(start, tmp_path):
    process = start(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while b"round 2/" not in process.stderr.readline():
        assert process.poll() is None
    process.stderr.close()  # as `dpok train-rl 2>&1 | head` does
    assert process.wait(PATIENCE) == 141
    assert_saved(tmp_path)
