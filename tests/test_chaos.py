"""Runs killed at random moments and gone on with are the run that was left alone, bit for bit.

Two kills in the suite; ``make chaos`` does fifty and prints its counts.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

KILLS = int(os.environ.get("DPOK_CHAOS", "2"))
RUNS = {
    "train-rl": (
        "--rounds=4 --samples-per-round=4 --updates-per-round=2 --batch-size=4 --sample-every=2"
        " --advantage=value --buffer-size=24"
    ).split(),
}
COMMON = (
    "--reward=jpeg-compressibility --num-inference-steps=3 --sample-count=2 --lora-rank=2"
    " --evaluation-samples=2 --device=cpu --tracker=tensorboard"
).split()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "dpok_cli", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def finish(folder, *arguments):
    process = start(folder, *arguments)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told


def left(run):
    """What a run leaves that must be the same: its adapter, metrics, grids and summary."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [
        {key: value for key, value in json.loads(line).items() if not key.startswith("seconds/")}
        for line in lines
    ]
    files = [*run.glob("adapter/*.safetensors"), *run.glob("samples/*"), run / "summary.json"]
    return metrics, {str(file.relative_to(run)): file.read_bytes() for file in sorted(files)}


@pytest.mark.parametrize("command", RUNS)
def test_a_killed_run_ends_as_one_left_alone(command, pipeline_folder, tmp_path):
    flags = [command, "--prompt=a cat", f"--model={pipeline_folder}", *RUNS[command], *COMMON]
    process = start(tmp_path, *flags, "--name=alone")
    told = iter(process.stderr.readline, "")
    assert any(line.startswith("Run folder") for line in told)
    began = time.monotonic()
    assert process.wait(timeout=600) == 0
    span = time.monotonic() - began
    expected = left(tmp_path / "runs" / "alone")
    assert len(expected[0]) == 4
    assert len(expected[1]) >= 4

    chance = random.Random(20230516)
    killed = same = 0
    for number in range(KILLS):
        name = f"killed-{number}"
        process = start(tmp_path, *flags, f"--name={name}")
        assert any(line.startswith("Run folder") for line in iter(process.stderr.readline, ""))
        for _ in range(chance.choice([1, 1, 2])):  # some are killed again when gone on with
            try:
                process.wait(timeout=chance.uniform(0, span))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
            process = start(tmp_path, command, "--resume", name)
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told
        same += left(tmp_path / "runs" / name) == expected
    print(f"\n{command}: {KILLS} runs, {killed} kills, {same} of {KILLS} as one left alone")
    assert same == KILLS
    assert killed > 0
