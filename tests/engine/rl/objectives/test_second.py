"""A second objective is one more file: the loop, the view and the config take it as it is."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
TINY_RUN = (
    "--objective denoising --eta 0 --guidance-scale 1 --num-inference-steps 3 --rounds 2"
    " --samples-per-round 4 --group-size 1 --batch-size 4 --updates-per-round 2"
    " --evaluation-samples 0 --sample-every 0 --tracker= --device cpu"
    " --reward jpeg-compressibility --buffer-size 12"
).split()


@pytest.mark.slow
def test_a_second_objective_is_one_file(pipeline_folder, tmp_path):
    package = tmp_path / "dpok_cli"
    shutil.copytree(
        ROOT / "dpok_cli", package, ignore=shutil.ignore_patterns("tiny", "__pycache__")
    )
    (package / "tiny").symlink_to(ROOT / "dpok_cli" / "tiny")
    added = package / "engine/rl/objectives/weighted_denoising.py"
    shutil.copy(ROOT / "tests/support/weighted_denoising.py", added)

    def dpok(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
        command = [sys.executable, "-m", "dpok_cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    shown = dpok("train-rl", "--help").stdout
    assert "dpok|nft|mixed|denoising" in shown
    assert "Weight of the denoising loss." in shown

    prompt = ("train-rl", "--model", str(pipeline_folder), "--prompt", "a cat", "--name", "second")
    refused = dpok(*prompt, *TINY_RUN, "--guidance-scale", "3")
    assert (refused.returncode, "--guidance-scale 3.0: must be 1 or less" in refused.stderr) == (
        2,
        True,
    )

    done = dpok(*prompt, *TINY_RUN, "--denoising-weight", "2")
    assert done.returncode == 0, done.stderr
    assert "weighted error" in done.stderr
    assert done.stderr.count("hint: denoising_weight is 2.") == 1
    run = tmp_path / "runs" / "second"
    assert tomllib.loads((run / "config.toml").read_text())["denoising_weight"] == 2.0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [1, 2]
    assert [sorted({"kl", "ratio/mean"} & record.keys()) for record in records] == [[], []]
    assert [record["grad_norm"] > 0 for record in records] == [True, True]
    assert "online RL by weighted denoising" in (run / "adapter" / "README.md").read_text()
    assert (run / "plots" / "metrics.png").is_file()

    resumed = dpok("train-rl", "--resume", "second", "--rounds", "3", "--lr-schedule", "cosine")
    assert resumed.returncode == 0, resumed.stderr
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
