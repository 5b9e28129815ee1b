"""A second objective is one more file: the loop, the view and the config take it as it is."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[4]
#: Runs command lines in one process, each with its own files for what it prints.
COMMANDS = """
import json, os, sys

from dpok_cli import cli

codes = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
        os.close(file)
    codes.append(cli.run(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
with open("codes", "w") as file:
    json.dump(codes, file)
"""
TINY_RUN = (
    "--objective denoising --eta 0 --guidance-scale 1 --num-inference-steps 3 --rounds 2"
    " --samples-per-round 4 --group-size 1 --batch-size 4 --updates-per-round 2"
    " --evaluation-samples 0 --sample-every 0 --tracker= --device cpu"
    " --reward jpeg-compressibility --buffer-size 12"
).split()


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.mark.slow
def test_a_second_objective_is_one_file(pipeline_folder, tmp_path):
    package = tmp_path / "dpok_cli"
    shutil.copytree(
        ROOT / "dpok_cli", package, ignore=shutil.ignore_patterns("tiny", "__pycache__")
    )
    (package / "tiny").symlink_to(ROOT / "dpok_cli" / "tiny")
    added = package / "engine/rl/objectives/weighted_denoising.py"
    shutil.copy(ROOT / "tests/support/weighted_denoising.py", added)

    prompt = ("train-rl", "--model", str(pipeline_folder), "--prompt", "a cat", "--name", "second")
    shown, refused, done, resumed = dpok(
        tmp_path,
        ("train-rl", "--help"),
        (*prompt, *TINY_RUN, "--guidance-scale", "3"),
        (*prompt, *TINY_RUN, "--denoising-weight", "2"),
        ("train-rl", "--resume", "second", "--rounds", "3", "--lr-schedule", "cosine"),
    )
    assert "dpok|nft|mixed|denoising" in shown.out
    assert "Weight of the denoising loss." in shown.out
    assert refused.code == 2
    assert "--guidance-scale 3.0: must be 1 or less" in refused.err
    assert done.code == 0, done.err
    assert "weighted error" in done.err
    assert done.err.count("hint: denoising_weight is 2.") == 1
    run = tmp_path / "runs" / "second"
    assert tomllib.loads((run / "config.toml").read_text())["denoising_weight"] == 2.0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [1, 2, 3]
    assert [sorted({"kl", "ratio/mean"} & record.keys()) for record in records] == [[], [], []]
    assert [record["grad_norm"] > 0 for record in records] == [True, True, True]
    assert "online RL by weighted denoising" in (run / "adapter" / "README.md").read_text()
    assert (run / "plots" / "metrics.png").is_file()
    assert resumed.code == 0, resumed.err


def dpok(folder, *commands):
    """Run command lines of the copy in a folder, as one program."""
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    program = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    ended = subprocess.run(program, cwd=folder, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, (folder / "0.err").read_text()
    return [
        Result(code, *((folder / f"{number}.{name}").read_text() for name in ("out", "err")))
        for number, code in enumerate(json.loads((folder / "codes").read_text()))
    ]
