"""The commands with the real engine, on a very small model."""

import json

import pytest
from PIL import Image

from support.rewards import Redness


@pytest.fixture
def train(dpok, pipeline_folder, install):
    """Train for two rounds in an empty folder."""
    install(Redness)
    settings = {
        "model": pipeline_folder,
        "prompt": "a red cat",
        "reward": "redness",
        "rounds": 2,
        "samples-per-round": 4,
        "num-inference-steps": 3,
        "batch-size": 3,
        "updates-per-round": 2,
        "lora-rank": 2,
        "learning-rate": 0.02,
        "evaluation-samples": 2,
        "sample-every": 1,
        "sample-count": 2,
        "device": "cpu",
    }
    flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return lambda *more: dpok("train-rl", *flags, *more)


def test_train_then_sample(train, dpok, pipeline_folder, tmp_path):
    result = train("--name", "red")
    assert result.code == 0, result.err
    assert [row.split()[0] for row in result.out.splitlines()[1:]] == [
        "redness",
        "pixel_distance",
        "Adapter:",
        "Next:",
        "For",
    ]
    run = tmp_path / "runs" / "red"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["samples"]) for line in lines] == [(1, 4), (2, 8)]
    assert all(line["ratio/first_max_dev"] <= 1e-6 for line in lines)
    for file in (
        "config.toml",
        "summary.json",
        "adapter/pytorch_lora_weights.safetensors",
        "plots/metrics.png",
        "samples/round-00000.png",
        "samples/round-00002.png",
    ):
        assert (run / file).stat().st_size > 0

    both = dpok("sample", "--run", "red", "--before", "--seeds", "3-4", "--output", "both")
    assert both.code == 0, both.err
    base = ("--model", str(pipeline_folder), "--prompt", "a red cat", "--device", "cpu")
    steps = ("--num-inference-steps", "3")
    assert dpok("sample", *base, *steps, "--seeds", "4", "--output", "base").code == 0
    assert pixels("both/before/000_4.png") == pixels("base/000_4.png")
    assert pixels("both/before/000_4.png") != pixels("both/after/000_4.png")
    assert pixels("both/before/000_4.png") != pixels("both/before/000_3.png")


def pixels(file):
    with Image.open(file) as picture:
        return picture.tobytes()


def test_a_runs_config_repeats_it(train, dpok, tmp_path):
    assert train("--name", "first", "--evaluation-samples", "0").code == 0
    again = dpok("train-rl", "--config", "runs/first/config.toml", "--name", "second")
    assert again.code == 0, again.err
    first, second = (
        [json.loads(line) for line in (tmp_path / f"runs/{name}/metrics.jsonl").open()]
        for name in ("first", "second")
    )
    for one, other in zip(first, second, strict=True):
        for key in ("reward/mean", "kl", "loss", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)
