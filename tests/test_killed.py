"""Killed outright, while drawing and while training, a run ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys

import pytest

KILLED = """
import os, signal, sys
from importlib import import_module
from dpok_cli import cli

module, owner, name, call = sys.argv[1].split(":")
owner = getattr(import_module(module), owner) if owner else import_module(module)
original, calls = getattr(owner, name), 0

def counted(*arguments, **options):
    global calls
    calls += 1
    if calls == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(owner, name, counted)
cli.run(sys.argv[2:])
"""

#: Half way through an image of the second batch, before its lines are written, and in training.
IMAGE = "dpok_cli.engine.sft.dataset.store::_save_image:6"
LINES = "dpok_cli.engine.sft.dataset.store::_lines:3"
UPDATE = "dpok_cli.engine.sft.loop:SFTTrainer:step:5"


@pytest.fixture
def killed(tmp_path):
    """Runs a command line in a process of its own that dies at a certain call."""

    def killed(where, *arguments):
        result = subprocess.run(
            [sys.executable, "-c", KILLED, where, *arguments],
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == -signal.SIGKILL, result.stderr

    return killed


def left_by(run):
    """Return the files of a run; of metrics what is not of the clock, of configs nothing."""
    files = {
        file.relative_to(run).as_posix(): file.read_bytes()
        for folder in ("adapter", "dataset", "samples")
        for file in (run / folder).rglob("*")
        if file.suffix in {".png", ".safetensors", ".jsonl", ".json"}
    }
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [
        {key: value for key, value in json.loads(line).items() if "seconds" not in key}
        for line in lines
    ]
    return files, metrics


def test_train_sft(dpok, killed, pipeline_folder, tmp_path):
    settings = {
        "model": pipeline_folder,
        "prompt": "a red cat",
        "reward": "jpeg-incompressibility",
        "images": 10,
        "steps": 6,
        "batch-size": 4,
        "sample-batch-size": 4,
        "num-inference-steps": 2,
        "lora-rank": 2,
        "learning-rate": 0.02,
        "log-every": 4,
        "checkpoint-every": 2,
        "sample-every": 3,
        "sample-count": 2,
        "evaluation-samples": 0,
        "tracker": "",
        "device": "cpu",
    }
    flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    whole = dpok("train-sft", *flags, "--name", "whole")
    assert whole.code == 0, whole.err

    killed(IMAGE, "train-sft", *flags, "--name", "cut")
    run = tmp_path / "runs" / "cut"
    assert len((run / "dataset/metadata.jsonl").read_text().splitlines()) == 4
    killed(LINES, "train-sft", "--resume", "cut")
    killed(UPDATE, "train-sft", "--resume", "cut")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000002", "000004"]
    result = dpok("train-sft", "--resume", "cut")
    assert result.code == 0, result.err

    files, metrics = left_by(run)
    expected, expected_metrics = left_by(tmp_path / "runs" / "whole")
    assert metrics == expected_metrics
    assert [line["step"] for line in metrics] == [4, 6]
    assert files.keys() == expected.keys()
    assert "adapter/pytorch_lora_weights.safetensors" in files
    assert [name for name in files if files[name] != expected[name]] == []
