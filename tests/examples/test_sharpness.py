"""The third party's reward to copy: installed, used and uninstalled as a person would."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "dpok-reward-sharpness"
PAGE = (ROOT / "docs" / "writing-a-reward.md").read_text(encoding="utf-8")


@pytest.fixture
def environment(tmp_path):
    """A fresh environment that borrows what dpok depends on, but not dpok, from this one.

    A whole installation would download torch for each run of the tests.
    """
    home = tmp_path / "venv"
    venv.create(home, symlinks=os.name == "posix")
    python = next(home.glob("bin/python")).absolute()
    (site,) = home.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def dpok(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [python.with_name("dpok"), *arguments],
            cwd=tmp_path,
            env=settings | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )

    def pip(*arguments: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(python), *arguments]
        done = subprocess.run(pip, cwd=tmp_path, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return dpok, pip


def copy(source: Path, target: Path, *parts: str) -> str:
    """Copy what a package is made of, so that building it leaves nothing in the tree."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for part in parts:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=ignore)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(source / part, target / part)
    return str(target)


SHORT = """train-rl --prompt cat --device cpu --rounds 1 --samples-per-round 2
    --num-inference-steps 2 --evaluation-samples 0 --sample-every 0 --lora-rank 2""".split()


@pytest.mark.slow
def test_installed_it_is_listed_and_trains_and_uninstalled_it_is_gone(environment, tmp_path):
    dpok, pip = environment
    parts = ("pyproject.toml", "README.md", "LICENSE", "dpok_cli", "plugins")
    ours = copy(ROOT, tmp_path / "dpok", *parts)
    theirs = copy(EXAMPLE, tmp_path / "sharpness", "pyproject.toml", "dpok_reward_sharpness.py")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile")
    pip("install", *offline, ours, theirs)

    listed = dpok("rewards")
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith("sharpness")]
    assert row.split()[1:3] == ["dpok-reward-sharpness", "0.1.0"]
    assert listed.stderr == ""

    flags = "--reward image-reward=1.0 --reward sharpness=0.1 --reward sharpness=-0.2:scale=3"
    trained = dpok(*SHORT, *flags.split(), "--name", "run")
    assert trained.returncode == 0, trained.stderr
    (line,) = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    one, scaled = metrics["reward/sharpness"], metrics["reward/sharpness-2"]
    assert one > 0
    assert scaled == pytest.approx(3 * one, rel=1e-4)
    total = metrics["reward/image-reward"] + 0.1 * one - 0.2 * scaled
    assert metrics["reward/mean"] == pytest.approx(total, rel=1e-4)

    pip("uninstall", "-y", "dpok-reward-sharpness")
    assert "sharpness" not in dpok("rewards").stdout
    gone = dpok(*SHORT, "--reward", "sharpness")
    assert gone.returncode == 2
    assert gone.stderr.startswith("Error: Unknown reward 'sharpness'.")


def test_the_module_is_short_and_the_page_shows_it_whole():
    module = (EXAMPLE / "dpok_reward_sharpness.py").read_text()
    assert len(module.splitlines()) < 40
    assert module in PAGE
    assert (EXAMPLE / "pyproject.toml").read_text() in PAGE
    test = (EXAMPLE / "tests" / "test_sharpness.py").read_text()
    assert test[: test.index("\n\n\ndef test_a_blurred")] in PAGE


def test_its_own_test_passes(monkeypatch):
    import importlib.util

    monkeypatch.syspath_prepend(EXAMPLE)
    file = EXAMPLE / "tests" / "test_sharpness.py"
    spec = importlib.util.spec_from_file_location("sharpness_tests", file)
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    tests.test_one_bright_pixel_by_hand()
    tests.test_a_blurred_image_is_less_sharp()
