"""Runs killed at random moments and resumed are the run that was never killed, bit for bit.

A few runs in the suite; ``make chaos`` does fifty and prints its counts.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.waiting import wait_for

COUNT = int(os.environ.get("DPOK_CHAOS", "4"))
#: Each with the numbers of the checkpoints that it writes.
RUNS = {
    "train-rl": (
        "--rounds=4 --samples-per-round=4 --updates-per-round=2 --batch-size=4 --sample-every=2"
        " --advantage=value --value-updates=2 --buffer-size=24",
        [1, 2, 3, 4],
    ),
    "train-sft": (
        "--images=8 --steps=8 --batch-size=2 --sample-batch-size=2 --log-every=2"
        " --checkpoint-every=2 --sample-every=4",
        [2, 4, 6, 8],
    ),
}
COMMON = (
    "--prompt=cat --reward=jpeg-incompressibility --num-inference-steps=2 --sample-count=2"
    " --lora-rank=2 --learning-rate=0.01 --evaluation-samples=2 --device=cpu --tracker= --quiet"
)


class Runs:
    """Runs in a folder, each of one process after another."""

    def __init__(self, folder: Path, model: Path, python: Callable):
        self.folder, self.model, self.python = folder, model, python

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def start(self, command: str, name: str):
        """Start a run, or resume it if it has begun."""
        if (self.path(name) / "config.toml").exists():
            arguments = [command, "--resume", name, "--quiet"]
        else:
            shutil.rmtree(self.path(name), ignore_errors=True)
            flags, _ = RUNS[command]
            arguments = [command, *flags.split(), *COMMON.split()]
            arguments += [f"--model={self.model}", f"--name={name}"]
        return self.python("-m", "dpok_cli", *arguments, folder=self.folder)

    def finish(self, command: str, name: str) -> None:
        process = self.start(command, name)
        assert process.wait() == 0, process.err

    def kill(self, command: str, name: str, when: Callable[[], bool]) -> bool:
        """Start or resume, and kill when the moment has come; returns False if it ended before."""
        process = self.start(command, name)
        wait_for(lambda: process.code is not None or when())
        process.kill()
        assert process.code in (0, -9), process.err
        return process.code != 0

    def left(self, name: str):
        """What a run leaves that must be the same: adapter, metrics, grids, summary, images."""
        run = self.path(name)
        metrics = [
            {key: value for key, value in json.loads(line).items() if "seconds/" not in key}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        kept = [
            file
            for folder in ("adapter", "samples", "dataset")
            for file in (run / folder).rglob("*.*")
            if file.suffix in {".safetensors", ".png"}
        ]
        files = [*kept, run / "summary.json"]
        return metrics, {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_killed_runs_end_as_those_left_alone(
    python, pipeline_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("DPOK_DEBUG", raising=False)
    runs, began = Runs(tmp_path, pipeline_folder, python), time.monotonic()
    spans, expected = {}, {}
    runs.kill("train-rl", "warm-up", lambda: True)  # starts the process that all are forks of
    for command in RUNS:
        started = time.monotonic()
        runs.finish(command, command)
        spans[command] = time.monotonic() - started
        expected[command] = runs.left(command)
        metrics, files = expected[command]
        assert len(metrics) == 4
        assert len(files) >= 5  # adapter, three grids, summary; and an image set

    chance = random.Random(20230516)
    killed = within = same = 0
    for number in range(COUNT):
        command = list(RUNS)[number % len(RUNS)]
        name = f"{command}-{number}"
        for _ in range(chance.choice([1, 1, 2])):  # some are killed again after they resumed
            checkpoints = runs.path(name) / "checkpoints"
            if chance.random() < 0.4:
                writing = checkpoints / f".{chance.choice(RUNS[command][1]):06d}.tmp"
                when = writing.exists
            else:
                deadline = time.monotonic() + chance.uniform(0, spans[command])

                def when(deadline: float = deadline) -> bool:
                    return time.monotonic() > deadline

            killed += runs.kill(command, name, when)
            within += any(checkpoints.glob(".*.tmp"))
        runs.finish(command, name)
        same += runs.left(name) == expected[command]
        shutil.rmtree(runs.path(name))
    with capsys.disabled():
        print(
            f"\n{same} of {COUNT} killed runs ended as one left alone: {killed} kills, {within} of"
            f" them while a checkpoint was written; {time.monotonic() - began:.0f} s"
        )
    assert same == COUNT
    assert killed > 0
    assert within > 0


@pytest.mark.parametrize("part", ["adapter", "metrics"])
def test_a_difference_would_be_seen(part, python, tmp_path):
    runs = Runs(tmp_path, tmp_path, python)
    run = runs.path("one")
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "weights.safetensors").write_bytes(b"1")
    (run / "metrics.jsonl").write_text('{"round": 1, "loss": 0.5, "seconds/update": 1.0}\n')
    (run / "summary.json").write_text("{}")
    before = runs.left("one")
    (run / "metrics.jsonl").write_text('{"round": 1, "loss": 0.5, "seconds/update": 2.0}\n')
    assert runs.left("one") == before
    if part == "adapter":
        (run / "adapter" / "weights.safetensors").write_bytes(b"2")
    else:
        (run / "metrics.jsonl").write_text('{"round": 1, "loss": 0.75}\n')
    assert runs.left("one") != before
