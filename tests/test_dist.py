"""The sdist and the wheel are whole, and work where there is no checkout.

``make dist`` makes them from what git holds, installs the wheel and the third party's reward into a
new environment, and names both by DPOK_DIST, without which there is nothing to test.
"""

import json
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("DPOK_DIST", "")).absolute()

pytestmark = pytest.mark.skipif("DPOK_DIST" not in os.environ, reason="make dist runs these")


def files(kind: str) -> set[str]:
    """Return the files in the one archive of a kind, without the folder that holds them all."""
    (archive,) = FOLDER.glob(kind)
    if kind == "*.whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as opened:
        return {each.name.partition("/")[2] for each in opened if each.isfile()}


def test_the_sdist_holds_every_file():
    held = {file for file in files("source.tar") if not file.startswith(".")}
    made = {"PKG-INFO", "setup.cfg"}
    packed = {file for file in files("*.tar.gz") if not file.startswith("dpok.egg-info/")}
    assert packed == held | made


def test_the_wheel_holds_every_file_of_the_packages():
    held = {re.sub("^plugins/", "dpok_plugins/", file) for file in files("source.tar")}
    packed = {file for file in files("*.whl") if ".dist-info/" not in file}
    assert packed == {file for file in held if file.startswith(("dpok_cli/", "dpok_plugins/"))}
    for kind in ("presets/*.toml", "templates/*.j2", "unet/*.safetensors", "tiny/README.md"):
        assert any(Path(file).match(kind) for file in packed), kind


@pytest.fixture
def dpok(tmp_path):
    """Run the installed command in an empty folder, and return its stdout."""
    hidden = ("PYTHONPATH", "DPOK_PLUGINS", "DPOK_DEBUG")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}

    def dpok(*arguments: str) -> str:
        done = subprocess.run(
            [FOLDER / "venv" / "bin" / "dpok", *arguments],
            cwd=tmp_path,
            env=environment | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return dpok


def test_train_sample_and_evaluate_with_a_third_partys_reward(dpok, tmp_path):
    listed = {each["name"]: each for each in json.loads(dpok("rewards", "--json"))["rewards"]}
    assert {"image-reward", "judge", "sharpness"} <= listed.keys()
    assert "eta" in dpok("train-rl", "--preset", "sd15", "--print-config")

    few = "--samples-per-round=4 --batch-size=4 --num-inference-steps=3 --evaluation-samples=2"
    rewards = ("--reward=image-reward", "--reward=sharpness=0.1")
    train = ("train-rl", "--prompt=a red cat", "--rounds=1", "--name=first", "--device=cpu")
    assert "Adapter: runs/first/adapter" in dpok(*train, *few.split(), *rewards)
    run = tmp_path / "runs" / "first"
    (line,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert line["round"] == 1
    assert {"reward/image-reward", "reward/sharpness"} <= line.keys()

    drawn = dpok("sample", "--run=first", "--before", "--seeds=0-1", "--output=drawn")
    assert drawn == f"{Path('drawn', 'before_after.png')}\n"
    assert len(list((tmp_path / "drawn" / "after").glob("000_*.png"))) == 2

    scored = ("--reward=sharpness", "--reward=judge", "--samples=4", "--human", "--output=compared")
    results = json.loads(dpok("evaluate", "--run=first", *scored, "--json"))
    assert {each["name"] for each in results["rewards"]} == {"sharpness", "judge"}
    assert "<html" in (tmp_path / "compared" / "report.html").read_text(encoding="utf-8")
