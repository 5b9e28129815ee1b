"""What may happen to a run from outside: signals, a full disk, a folder that cannot be written."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from dpok_cli.engine.training import checkpoint

FLAGS = (
    "--prompt=a cat --reward=jpeg-compressibility --num-inference-steps=3 --samples-per-round=4"
    " --updates-per-round=1 --batch-size=4 --lora-rank=2 --sample-every=0 --evaluation-samples=0"
    " --device=cpu --tracker= --name=run"
).split(" --")


def start(folder, model, *more):
    first, *rest = FLAGS
    flags = [first, *(f"--{flag}" for flag in rest), f"--model={model}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "dpok_cli", "train-rl", *flags],
        cwd=folder,
        # A buffered stderr, as most have it: a signal in the middle of a write must not break it.
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, text):
    """Read what is told until a line starts with ``text``; returns it all."""
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith(text):
            return told
    raise AssertionError("".join(told))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_where_nothing_is_lost(number, code, pipeline_folder, tmp_path):
    process = start(tmp_path, pipeline_folder, "--rounds=100000")
    wait_for(process, "round 2/")
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == "Stopped; go on with: dpok train-rl --resume runs/run"
    assert "Traceback" not in err
    rounds = (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()
    last = json.loads(rounds[-1])["round"]
    assert len(rounds) == last >= 2
    assert checkpoint.numbers(tmp_path / "runs/run/checkpoints")[-1] == last


def test_a_second_interrupt_ends_it_at_once(pipeline_folder, tmp_path):
    # So many updates in a round that its end is far away.
    process = start(tmp_path, pipeline_folder, "--rounds=2", "--updates-per-round=1000000")
    wait_for(process, "Run folder")
    process.send_signal(signal.SIGINT)
    wait_for(process, "Stopping")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "go on with: dpok train-rl --resume runs/run" in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_the_last_checkpoint(pipeline_folder, tmp_path):
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
        process = start(
            tmp_path, pipeline_folder, "--rounds=1000", f"--runs-dir={disk}", "--keep=1000"
        )
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "Traceback" not in err
        assert "No space left" in err.splitlines()[-1]
        folder = disk / "run/checkpoints"
        kept = checkpoint.numbers(folder)
        assert kept
        state, damaged = checkpoint.read_latest(folder)
        assert state["number"] == kept[-1]
        assert damaged == []
        shutil.copytree(disk / "run", tmp_path / "runs/run")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    more = start_resumed(tmp_path, kept[-1] + 1)
    _, err = more.communicate(timeout=300)
    assert more.returncode == 0, err
    rounds = (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in rounds] == list(range(1, kept[-1] + 2))


def start_resumed(folder, rounds):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "dpok_cli", "train-rl", "--resume", "runs/run"),
            f"--rounds={rounds}",
        ],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
