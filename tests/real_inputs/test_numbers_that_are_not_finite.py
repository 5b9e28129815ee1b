"""Metrics that overflow: a reward with scores near the largest float, or a KL that diverged.

From dashboards that stopped reading a run's JSON at its first NaN.
"""

import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from safetensors import safe_open

from dpok_cli import RewardModel
from dpok_cli.display import tables
from dpok_cli.display.console import sparkline
from dpok_cli.engine.evaluation.evaluate import finish
from dpok_cli.engine.evaluation.report.html import write_report
from dpok_cli.rewards.manager import build

SMALL = (
    "--prompt=cat --rounds=1 --samples-per-round=2 --updates-per-round=1 --batch-size=2 --keep=1"
    " --num-inference-steps=2 --lora-rank=2 --sample-every=0 --evaluation-samples=2 --tracker="
    " --device=cpu --name=run"
).split()


class Huge(RewardModel):
    """A finite score, of which a sum of two is not."""

    name = "huge"

    def score_batch(self, images, prompts):
        return images.mean((1, 2, 3)) * 0 + 3e38


def load(text):
    """Parse JSON as strict parsers do."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def all_json(folder):
    """Parse every JSON in a folder, and the headers of its checkpoints; returns the files."""
    files = [each for each in Path(folder).rglob("*") if each.suffix in (".json", ".jsonl")]
    for file in files:
        lines = file.read_text("utf-8").splitlines() if file.suffix == ".jsonl" else None
        for text in lines or [file.read_text("utf-8")]:
            load(text)
    for file in Path(folder).rglob("state.safetensors"):
        with safe_open(file, "pt") as state:
            load(state.metadata()["state"])
    return {file.name for file in files}


def test_a_run_is_json_throughout_and_can_be_resumed_and_evaluated(dpok, install, pipeline_folder):
    install(Huge)
    code, out, err = dpok("train-rl", *SMALL, f"--model={pipeline_folder}", "--reward=huge=2")
    assert code == 0, err
    (first,) = map(load, Path("runs/run/metrics.jsonl").read_text().splitlines())
    assert (first["round"], first["reward/mean"], first["skipped"]) == (1, None, 1)
    assert load(Path("runs/run/summary.json").read_text())["before"]["huge"] is None
    assert all_json("runs/run") >= {"run.json", "metrics.jsonl", "summary.json", "manifest.json"}
    code, out, err = dpok("train-rl", "--resume=run", "--rounds=2")
    assert code == 0, err
    metrics = [load(line) for line in Path("runs/run/metrics.jsonl").read_text().splitlines()]
    assert metrics[0] == first
    assert [each["round"] for each in metrics] == [1, 2]
    with Image.open("runs/run/plots/metrics.png") as plot:
        plot.verify()
    all_json("runs/run")
    code, out, err = dpok("evaluate", "--run=run", "--reward=huge", "--samples=2", "--json")
    assert code == 0, err
    assert load(out)["rewards"][0]["name"] == "huge"
    assert all_json("runs/run") >= {"settings.json", "scores.jsonl", "results.json"}


@pytest.mark.parametrize("samples", [1, 8])
def test_one_kl_that_is_not_finite_is_shown_as_such(samples, plant):
    evaluation, folder = plant(
        lambda model, row, seed: {"image-reward": float(seed), "judge": 1.0}, samples=samples
    )
    lines = [json.loads(line) for line in folder.scores.read_text().splitlines()]
    next(line for line in lines if line["model"] == "tuned")["kl"] = math.nan
    folder.scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = finish(evaluation, build(evaluation.rewards), folder)
    assert load(folder.results.read_text()) == results
    (row,) = (
        each for each in results["rows"] if (each["measure"], each["scope"]) == ("kl", "group")
    )
    assert (row["mean"], row["low"], row["high"]) == (None, None, None)
    assert folder.table.read_text().count("nan") == 0
    page = write_report(results, evaluation, folder).read_text("utf-8")
    assert "not finite" in page
    stream = io.StringIO()
    Console(file=stream, width=100).print(tables.evaluation_table(results))
    (shown,) = (line for line in stream.getvalue().splitlines() if line.startswith("kl"))
    assert shown.split() == ["kl", "tuned", "not", "finite"]


def test_a_course_has_gaps_where_it_is_not_finite():
    assert sparkline([0.0, math.nan, 7.0, math.inf]) == "▁ █ "
    assert sparkline([math.nan]) == " "
