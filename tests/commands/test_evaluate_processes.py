"""`dpok evaluate` in two real processes: each draws its share, and one writes what one would."""

import os
import subprocess
import sys

import pytest

from dpok_cli.config import SampleConfig

# Five batches a model, the last one short: the processes do not share them evenly.
FLAGS = (
    "--prompt=a-cat --prompt=a-dog --samples=7 --sample-batch-size=3 --resamples=100"
    " --num-inference-steps=2 --reward=jpeg-compressibility --device=cpu --seed=3"
).split()
TWO = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")


@pytest.fixture(scope="module")
def adapter(pipeline_folder, tmp_path_factory):
    """An adapter of the small pipeline that draws otherwise."""
    import torch

    from dpok_cli.engine.bases.model import load

    model = load(SampleConfig(model=str(pipeline_folder), device="cpu"))
    model.add_adapter(2, 0.0, ["to_q", "to_v"], seed=0)
    for parameter in model.adapter_parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(0))
    folder = tmp_path_factory.mktemp("adapters") / "tuned"
    model.save_adapter(folder)
    return folder


@pytest.fixture
def evaluate(adapter, pipeline_folder, tmp_path):
    """Runs the command, in one process or launched in two."""

    def evaluate(output, *more, launcher=()):
        flags = [f"--adapter={adapter}", f"--model={pipeline_folder}", *FLAGS, *more]
        return subprocess.run(
            [
                *(sys.executable, "-m", *launcher, "dpok_cli", "evaluate"),
                *(*flags, f"--output={output}"),
            ],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return evaluate


def test_two_processes_write_what_one_does(evaluate, tmp_path):
    alone = evaluate("one")
    assert alone.returncode == 0, alone.stderr
    both = evaluate("two", launcher=TWO)
    assert both.returncode == 0, both.stderr

    def files(folder):
        kept = [*folder.rglob("*.png"), *folder.glob("*.json*"), folder / "results.csv"]
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in kept}

    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert sum(name.startswith("images/") for name in one) == 2 * 2 * 7
    assert one.keys() == two.keys()
    assert [name for name in one if name.endswith((".json", ".jsonl", ".csv"))] != []
    assert [name for name in one if not name.startswith("plots/") and one[name] != two[name]] == []
    # One of them speaks.
    assert both.stdout.count("Report: ") == 1
    assert both.stderr.count("Evaluation folder: two") == 1

    # What one process began, two go on with; what is there already is left as it is.
    scores = tmp_path / "one" / "scores.jsonl"
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:4]))
    (tmp_path / "one" / "results.json").unlink()
    resumed = evaluate("one", launcher=TWO)
    assert resumed.returncode == 0, resumed.stderr
    again = files(tmp_path / "one")
    assert again["results.json"] == one["results.json"]


def test_a_folder_that_is_something_else_is_refused_by_both(evaluate, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine.txt").write_text("mine")
    refused = evaluate("two", launcher=TWO)
    assert refused.returncode != 0
    assert "two is there and is no evaluation: give another --output" in refused.stderr
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["mine.txt"]
