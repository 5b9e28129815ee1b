"""Disks that are not mounted, and folders that were moved or tidied up, when a run is resumed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpok_cli import tiny


def tree():
    return {file: file.read_bytes() for file in Path(".").rglob("*") if file.is_file()}


@pytest.fixture
def photos(tmp_path):
    """An image folder of one's own."""
    folder = tmp_path / "disk" / "photos"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    lines = [{"file_name": f"{number}.png", "text": "cat"} for number in range(4)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_an_image_folder_that_is_not_mounted(train, dpok, photos):
    assert train("train-sft", f"--dataset={photos}", "--name=run").code == 0
    photos.parent.rename("elsewhere")
    before = tree()
    result = dpok("train-sft", "--resume=run", "--steps=3")
    assert (result.code, result.out) == (2, "")
    (line,) = [line for line in result.err.splitlines() if line.startswith("Error")]
    assert line == (
        f"Error: The image folder {photos} is not there, or has no metadata.jsonl. If it was"
        " moved, give --dataset its new place; if it is on another disk, mount that."
    )
    assert tree() == before
    assert not photos.exists()
    moved = dpok("train-sft", "--resume=run", "--steps=3", "--dataset=elsewhere/photos")
    assert moved.code == 0, moved.err
    assert json.loads(Path("runs/run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_another_image_folder_in_its_place(train, dpok, photos):
    assert train("train-sft", f"--dataset={photos}", "--name=run").code == 0
    lines = (photos / "metadata.jsonl").read_text().splitlines(keepends=True)
    (photos / "metadata.jsonl").write_text("".join(lines[:3]))
    result = dpok("train-sft", "--resume=run", "--steps=3")
    assert result.code == 2
    assert "was made with metadata.jsonl = " in result.err


def test_a_shared_set_of_images_that_is_gone(train, dpok):
    assert train("train-sft", "--dataset=set", "--name=run").code == 0
    shutil.rmtree("set")
    result = dpok("train-sft", "--resume=run", "--steps=3")
    assert result.code == 2
    assert "set has 0 images, fewer than the run trained on. If it was moved" in result.err
    assert not Path("set").exists()


def test_checkpoints_that_are_gone(train, dpok):
    assert train("train-rl", "--name=run").code == 0
    shutil.rmtree("runs/run/checkpoints")
    before = tree()
    result = dpok("train-rl", "--resume=run", "--rounds=3")
    assert result.code == 2
    assert (
        "runs/run has the metrics of 2 rounds, but its checkpoints are gone: bring"
        " runs/run/checkpoints back, or start a new run."
    ) in result.err
    assert tree() == before


def test_a_newest_checkpoint_that_is_gone(train, dpok):
    assert train("train-rl", "--name=run", "--rounds=4", "--keep=9").code == 0
    weights = Path("runs/run/adapter/pytorch_lora_weights.safetensors")
    before = weights.read_bytes()
    for number in (3, 4):
        shutil.rmtree(f"runs/run/checkpoints/{number:06}")
    result = dpok("train-rl", "--resume=run")
    assert result.code == 0, result.err
    assert "The newest checkpoint is of round 2: rounds 3 to 4 are repeated." in result.err
    assert weights.read_bytes() == before


def test_a_run_without_checkpoints(train, dpok):
    assert train("train-rl", "--name=run", "--checkpoint-every=0").code == 0
    before = tree()
    result = dpok("train-rl", "--resume=run", "--rounds=3")
    assert result.code == 2
    assert "was trained with --checkpoint-every 0, so it has no checkpoint" in result.err
    assert tree() == before


def test_metrics_that_are_gone(train, dpok):
    assert train("train-rl", "--name=run").code == 0
    Path("runs/run/metrics.jsonl").unlink()
    result = dpok("train-rl", "--resume=run", "--rounds=3")
    assert result.code == 0
    assert "metrics.jsonl is gone or empty, so it begins after round 2." in result.err
    (record,) = map(json.loads, Path("runs/run/metrics.jsonl").read_text().splitlines())
    assert record["round"] == 3


def test_a_model_folder_that_was_moved(train, dpok, pipeline_folder):
    shutil.copytree(pipeline_folder, "model")
    assert train("train-rl", "--name=run", "--model=./model").code == 0
    Path("model").rename("moved")
    missing = dpok("train-rl", "--resume=run", "--rounds=3")
    assert missing.code == 2
    assert "There is no model folder" in missing.err
    resumed = dpok("train-rl", "--resume=run", "--rounds=3", "--model=moved")
    assert resumed.code == 0, resumed.err
    again = dpok("train-rl", "--resume=run", "--rounds=4")  # the new place is kept
    assert again.code == 0, again.err


@pytest.mark.parametrize("command", ["train-rl", "train-sft"])
def test_another_model_in_its_place(command, train, dpok, pipeline_folder):
    import torch
    from diffusers import UNet2DConditionModel

    shutil.copytree(pipeline_folder, "model")
    assert train(command, "--name=run", "--model=./model").code == 0
    network = UNet2DConditionModel.from_pretrained("model/unet")
    with torch.no_grad():
        network.conv_out.bias += 0.1
    network.save_pretrained("model/unet")
    before = tree()
    result = dpok(command, "--resume=run", "--rounds=3" if command == "train-rl" else "--steps=3")
    assert result.code == 2
    expected = {
        "train-rl": "was trained on another model than ./model, or its weights or scheduler have",
        "train-sft": "which has other weights now",
    }
    assert expected[command] in result.err.replace(str(Path.cwd()), ".")
    assert tree() == before


def test_relative_paths_from_another_folder(train, dpok, pipeline_folder, monkeypatch):
    """A run is resumed and evaluated from a folder other than the one it was started in."""
    shutil.copytree(pipeline_folder, "models/small")
    shutil.copytree(tiny.folder("clip"), "models/clip")
    assert train("train-rl", "--name=run", "--model=models/small").code == 0
    first = train(
        *("train-rl", "--name=more", "--model=./models/small", "--reward=clip:model=models/clip"),
        "--init-adapter=runs/run/adapter",
    )
    assert first.code == 0, first.err
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for command in (
        ("train-rl", "--resume=../runs/more", "--rounds=3"),
        ("sample", "--run=../runs/more", "--seeds=0", "--before"),
        ("evaluate", "--run=../runs/more", "--samples=2"),
    ):
        result = dpok(*command)
        assert result.code == 0, result.err
