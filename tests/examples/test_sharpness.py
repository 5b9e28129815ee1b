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
MED_CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}


@pytest.fixture
def image_reward(tmp_path) -> Path:
    """A very small ImageReward in the published layout."""
    from safetensors.torch import save_file
    from transformers import BlipTextConfig, BlipVisionConfig

    from dpok_plugins.image_reward_net import ImageRewardNet, to_published

    folder = tmp_path / "image_reward"
    folder.mkdir()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    vision = BlipVisionConfig(
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
        layer_norm_eps=1e-6,
        initializer_range=0.02,
    )
    tokens = {"vocab_size": len(vocab), "bos_token_id": None, "sep_token_id": None}
    text = BlipTextConfig(**MED_CONFIG, **tokens, max_position_embeddings=35)
    save_file(to_published(ImageRewardNet(vision, text, (4,))), folder / "ImageReward.safetensors")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    (folder / "vocab.txt").write_text("\n".join(vocab))
    return folder


@pytest.fixture
def environment(tmp_path):
    """A fresh environment that borrows what dpok depends on, but not dpok, from this one."""
    home = tmp_path / "venv"
    venv.create(home, symlinks=os.name == "posix")
    python = next(home.glob("bin/python")).absolute()
    (site,) = home.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [python, *command],
            cwd=tmp_path,
            env=settings | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )

    def pip(*arguments: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(python), *arguments]
        done = subprocess.run(pip, cwd=tmp_path, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run.pip = pip
    return run


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


TRAIN = """
import sys
from dpok_cli.cli import run
model, image_reward = sys.argv[1:]
flags = ["train-rl", "--model", model, "--prompt", "a cat", "--device", "cpu", "--rounds", "1",
    "--samples-per-round", "2", "--num-inference-steps", "2", "--evaluation-samples", "0",
    "--sample-every", "0", "--lora-rank", "2"]
both = ["--reward", f"image-reward=1.0:model={image_reward}", "--reward", "sharpness=0.1"]
sys.exit(run([*flags, "--reward", "sharpness:scale=3", "--name", "one"])
    or run([*flags, *both, "--name", "both"]))
"""


def test_installed_it_is_listed_and_trains_and_uninstalled_it_is_gone(
    environment, image_reward, pipeline_folder, tmp_path
):
    parts = ("pyproject.toml", "README.md", "LICENSE", "dpok_cli", "plugins")
    dpok = copy(ROOT, tmp_path / "dpok", *parts)
    plugin = copy(EXAMPLE, tmp_path / "sharpness", "pyproject.toml", "dpok_reward_sharpness.py")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    environment.pip("install", *offline, dpok, plugin)

    listed = environment("-m", "dpok_cli", "rewards")
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith("sharpness")]
    assert row.split()[1:3] == ["dpok-reward-sharpness", "0.1.0"]
    assert listed.stderr == ""

    trained = environment("-c", TRAIN, str(pipeline_folder), str(image_reward))
    assert trained.returncode == 0, trained.stderr
    one, both = (
        json.loads((tmp_path / "runs" / name / "metrics.jsonl").read_text())
        for name in ("one", "both")
    )
    assert one["reward/mean"] == pytest.approx(one["reward/sharpness"])
    assert one["reward/sharpness"] == pytest.approx(3 * both["reward/sharpness"], rel=1e-4)
    total = both["reward/image-reward"] + 0.1 * both["reward/sharpness"]
    assert both["reward/mean"] == pytest.approx(total, rel=1e-4)

    environment.pip("uninstall", "-y", "dpok-reward-sharpness")
    gone = environment("-m", "dpok_cli", "train-rl", "--prompt", "a cat", "--reward", "sharpness")
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
