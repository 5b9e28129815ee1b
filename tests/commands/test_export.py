"""`dpok export`: what it writes where, and what it refuses before it writes anything."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

from dpok_cli.config import to_toml
from dpok_cli.engine.lora.files import read_adapter
from dpok_cli.engine.rl.settings import TrainRLConfig
from engine.lora.conftest import equal


@pytest.fixture
def trained(pipeline_folder, adapters, tmp_path):
    """A run, "rabbit", whose adapter matters."""
    folder = tmp_path / "runs" / "rabbit"
    (folder / "adapter").mkdir(parents=True)
    for file in adapters["shaken"].iterdir():
        (folder / "adapter" / file.name).write_bytes(file.read_bytes())
    config = TrainRLConfig(model=str(pipeline_folder), prompts=("a lion",), num_inference_steps=3)
    (folder / "config.toml").write_text(to_toml(config))
    return folder


@pytest.mark.parametrize("source", ["rabbit", "latest", "runs/rabbit", "runs/rabbit/adapter"])
@pytest.mark.parametrize(
    ("form", "made"),
    [
        ("kohya", "rabbit-kohya.safetensors"),
        ("diffusers", "rabbit-diffusers.safetensors"),
        ("peft", "rabbit-peft"),
    ],
)
def test_an_adapter_of_a_run(dpok, trained, source, form, made):
    result = dpok("export", source, "--format", form)
    assert (result.code, result.err) == (0, "")
    assert result.out.strip() == made
    assert equal(read_adapter(Path(made)), read_adapter(trained / "adapter"))


def test_any_adapter_file(dpok, adapters, tmp_path):
    given = ("--format=kohya", "--dtype=fp16", "--output=to/lion.safetensors")
    assert dpok("export", str(adapters["shaken"]), *given).code == 0
    written = load_file(tmp_path / "to/lion.safetensors")
    assert {weight.dtype for weight in written.values()} == {torch.float16}
    again = dpok("export", "to/lion.safetensors", "--format=diffusers")
    assert again.out.strip() == "lion-diffusers.safetensors"
    first, second = map(read_adapter, (Path("to/lion.safetensors"), Path(again.out.strip())))
    assert equal(first, second)


def test_a_merged_pipeline_draws_the_same_images_without_an_adapter(dpok, trained, tmp_path):
    result = dpok("export", "rabbit", "--merge")
    assert result.code == 0, result.err
    assert result.out.strip() == "rabbit-merged"
    draw = ("--seeds=0-1", "--num-inference-steps=3", "--prompt=a lion", "--device=cpu")
    assert dpok("sample", "--run=rabbit", "--before", *draw, "--output=with").code == 0
    assert dpok("sample", "--model=rabbit-merged", *draw, "--output=merged").code == 0
    changed = 0
    for name in ("000_0.png", "000_1.png"):
        before, after, merged = (
            Image.open(tmp_path / folder / name)
            for folder in ("with/before", "with/after", "merged")
        )
        assert max(high for _, high in ImageChops.difference(after, merged).getextrema()) <= 1
        changed += max(high for _, high in ImageChops.difference(before, after).getextrema())
    assert changed > 5


def test_paths_in_the_home_folder(dpok, adapters, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(adapters["shaken"], tmp_path / "home/lora")
    result = dpok("export", "~/lora", "--format=kohya", "--output=~/lion.safetensors")
    assert result.code == 0, result.err
    assert result.out.strip() == str(tmp_path / "home/lion.safetensors")
    assert (tmp_path / "home/lion.safetensors").is_file()


def test_a_merged_pipeline_in_half_precision(dpok, trained, adapters, pipeline_folder, tmp_path):
    given = (f"--model={pipeline_folder}", "--dtype=bf16", "--output=half")
    assert dpok("export", str(adapters["shaken"]), "--merge", *given).code == 0
    weights = load_file(next((tmp_path / "half/unet").glob("*.safetensors")))
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert not any("lora" in name for name in weights)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rabbit",), "Give either --format diffusers|kohya|peft or --merge."),
        (("rabbit", "--merge", "--format=peft"), "Give either --format"),
        (("rabbit", "--format=kohia"), "--format 'kohia': no such form. Did you mean 'kohya'?"),
        (("rabbit", "--format=kohya", "--dtype=fp64"), "--dtype 'fp64': no such precision."),
        (("rabbit", "--format=kohya", "--output=a"), "name must end in .safetensors."),
        (("rabbit", "--format=peft", "--output=runs"), "runs already exists: give another"),
        (("other", "--format=peft"), "There is no run other"),
        (("alone.safetensors", "--merge"), "--merge needs the base model: give --model."),
    ],
)
def test_what_is_refused(dpok, trained, adapters, tmp_path, arguments, said):
    (weights,) = adapters["shaken"].glob("*.safetensors")
    (tmp_path / "alone.safetensors").write_bytes(weights.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    result = dpok("export", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert said in result.err
    assert result.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
