"""Killed outright, while drawing and while training, a run ends as if nothing had happened."""

import json
import signal

import pytest

#: Runs a command line until the Nth time that it does something, and dies by SIGKILL just before.
KILLED = """
import os, signal, sys

what, name, number = sys.argv[1].split(":")
left = int(number)

def count():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and os.fspath(arguments[0]).endswith(name):
            count()

if what == "write":
    sys.addaudithook(watch)
else:
    import torch
    step = torch.optim.AdamW.step

    def counted(*arguments, **options):
        count()
        return step(*arguments, **options)

    torch.optim.AdamW.step = counted

from dpok_cli import cli
cli.run(sys.argv[2:])
"""

#: Within the second batch of four images, when its images are there but its lines are not, and in
#: training.
IMAGE = "write:.png.tmp:6"
LINES = "write:metadata.jsonl:1"
UPDATE = "update::5"


@pytest.fixture
def killed(python):
    """Runs a command line in a process that dies at a certain moment."""

    def killed(when, *arguments):
        process = python("-c", KILLED, when, *arguments)
        assert process.wait() == -signal.SIGKILL, process.err

    return killed


def left_by(run):
    """Return the files of a run, but for its config, and its metrics without the times."""
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


def names(folder, pattern):
    return sorted(path.name for path in folder.glob(pattern))


@pytest.mark.slow
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
    metadata, images = run / "dataset" / "metadata.jsonl", run / "dataset" / "images"
    assert len(metadata.read_text().splitlines()) == 4
    assert names(images, "[0-9]*.png") == [f"{number:06}.png" for number in range(5)]
    killed(LINES, "train-sft", "--resume", "cut")
    assert len(metadata.read_text().splitlines()) == 4
    assert names(images, "[0-9]*.png") == [f"{number:06}.png" for number in range(8)]
    killed(UPDATE, "train-sft", "--resume", "cut")
    assert names(run / "checkpoints", "*") == ["000002", "000004"]
    result = dpok("train-sft", "--resume", "cut")
    assert result.code == 0, result.err

    files, metrics = left_by(run)
    expected, expected_metrics = left_by(tmp_path / "runs" / "whole")
    assert metrics == expected_metrics
    assert [line["step"] for line in metrics] == [4, 6]
    assert files.keys() == expected.keys()
    assert "adapter/pytorch_lora_weights.safetensors" in files
    assert [name for name in files if files[name] != expected[name]] == []
