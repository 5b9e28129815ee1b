"""What may happen to a run from outside: signals, a full disk, a folder that cannot be written."""

import json
import os
import shutil
import signal
import subprocess

import pytest

pytestmark = pytest.mark.slow
FLAGS = (
    "--prompt=cat --reward=jpeg-compressibility --num-inference-steps=3 --samples-per-round=4"
    " --updates-per-round=1 --batch-size=4 --lora-rank=2 --sample-every=0 --evaluation-samples=0"
    " --device=cpu --tracker= --name=run"
).split()


@pytest.fixture
def start(python, pipeline_folder):
    """Start `dpok train-rl` with these flags and more."""

    def start(*more, fresh=False):
        flags = (*FLAGS, f"--model={pipeline_folder}", *more)
        # A buffered stderr, as most have it: a signal in the middle of a write must not break it.
        environment = {"PYTHONUNBUFFERED": ""}
        command = ("-m", "dpok_cli", "train-rl", *flags)
        return python(*command, environment=environment, fresh=fresh)

    return start


def rounds(run):
    return [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoints(run):
    return sorted(int(folder.name) for folder in (run / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    ("number", "code", "fresh"), [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, False)]
)
def test_a_signal_ends_a_run_where_nothing_is_lost(number, code, fresh, start, tmp_path):
    process = start("--rounds=100000", fresh=fresh)
    process.wait_for_line("round 2/")
    process.send(number)
    assert process.wait() == code
    assert process.out == ""
    assert process.err.splitlines()[-1].startswith("Stopped; ")
    assert process.err.splitlines()[-1].endswith(": dpok train-rl --resume runs/run")
    assert "Traceback" not in process.err
    run = tmp_path / "runs" / "run"
    assert rounds(run) == list(range(1, len(rounds(run)) + 1))
    assert checkpoints(run)[-1] == len(rounds(run)) >= 2


def test_a_second_interrupt_ends_it_at_once(start):
    # So many updates in a round that its end is far away.
    process = start("--rounds=2", "--updates-per-round=1000000")
    process.wait_for_line("Run folder")
    process.send(signal.SIGINT)
    process.wait_for_line("Stopping")
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert process.err.splitlines()[-1].endswith(": dpok train-rl --resume runs/run")
    assert process.err.splitlines()[-1].startswith("Interrupted; ")
    assert "Traceback" not in process.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_the_last_checkpoint(start, python, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        process = start("--rounds=1000", f"--runs-dir={disk}", "--keep=1000")
        assert process.wait() == 1
        assert "Traceback" not in process.err
        assert "No space left" in process.err.splitlines()[-1]
        shutil.copytree(disk / "run", tmp_path / "runs" / "run")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    run = tmp_path / "runs" / "run"
    last = checkpoints(run)[-1]
    resumed = python("-m", "dpok_cli", "train-rl", "--resume=runs/run", f"--rounds={last + 1}")
    assert resumed.wait() == 0, resumed.err
    # Every checkpoint that is there is whole: none is passed over for an older one.
    assert "Warning" not in resumed.err
    (line,) = [line for line in resumed.err.splitlines() if line.startswith("round ")]
    assert line.startswith(f"round {last + 1}/{last + 1} ")
    assert rounds(run) == list(range(1, last + 2))
