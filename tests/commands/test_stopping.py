"""`dpok sample` and `dpok evaluate` are stopped by a signal, and the same command continues."""

import json
import signal

from support.waiting import wait_for

FLAGS = "--num-inference-steps=2 --guidance-scale=1 --sample-batch-size=4 --device=cpu".split()
PROMPTS = [f"--prompt=a cat number {number}" for number in range(60)]


def files(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".lock")
    }


def stopped(process, folder, number):
    """Stop a command once it has drawn some images; returns how many there are."""
    wait_for(lambda: len(list(folder.rglob("*.png"))) > 8)
    process.send(number)
    assert process.wait() == 128 + number
    assert process.out == ""
    assert "Stopped; the same command continues." in process.err.splitlines()
    return len(list(folder.rglob("*.png")))


def test_samples(python, pipeline_folder, tmp_path):
    command = ["-m", "dpok_cli", "sample", f"--model={pipeline_folder}", *FLAGS, *PROMPTS]
    process = python(*command, "--seeds=0", "--output=cut")
    there = stopped(process, tmp_path / "cut", signal.SIGINT)
    listed = json.loads((tmp_path / "cut/manifest.json").read_text())["images"]
    assert 8 < len(listed) == there < 60
    again, whole = (python(*command, "--seeds=0", f"--output={name}") for name in ("cut", "whole"))
    assert (again.wait(), whole.wait()) == (0, 0)
    assert f"{there} of the 60 images are in cut already." in again.err
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_an_evaluation(python, pipeline_folder, adapters, tmp_path):
    command = ["-m", "dpok_cli", "evaluate", f"--model={pipeline_folder}", *FLAGS, *PROMPTS]
    command += [f"--adapter={adapters['shaken']}", "--reward=jpeg-compressibility"]
    command += ["--samples=1", "--resamples=100"]
    there = stopped(python(*command, "--output=cut"), tmp_path / "cut", signal.SIGTERM)
    assert 8 < len((tmp_path / "cut/scores.jsonl").read_text().splitlines()) == there < 120
    again, whole = (python(*command, f"--output={name}") for name in ("cut", "whole"))
    assert (again.wait(), whole.wait()) == (0, 0)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
