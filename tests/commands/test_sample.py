import json
from pathlib import Path

import pytest
from PIL import Image

from dpok_cli.config import SampleConfig


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "runs/old/adapter").mkdir(parents=True)


def asked(engine):
    """Return prompts, seeds and adapter of each call of the sampler."""
    return [
        (call[1], call[2], call[3] and str(call[3])) for call in engine.calls if call[0] == "sample"
    ]


def names(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))


def test_base_model(engine, dpok, tmp_path):
    flags = ("--prompt", "a cat", "--prompt", "a dog", "--seeds", "3,5", "--output", "new")
    result = dpok("sample", *flags)

    assert (result.code, result.err) == (0, "")
    assert Path(result.out.strip()) == Path("new/grid.png")
    files = ["000_3.png", "000_5.png", "001_3.png", "001_5.png", "grid.png", "manifest.json"]
    assert names(tmp_path / "new") == files
    assert asked(engine) == [(("a cat", "a dog"), [3, 5], None)]
    assert ("grid", 4, 2) in engine.calls
    with Image.open("new/001_5.png") as picture:
        assert picture.getpixel((0, 0)) == (5, 0, 0)
    manifest = json.loads(Path("new/manifest.json").read_text())
    assert manifest["adapter"] is None
    assert manifest["settings"]["num_inference_steps"] == 20
    assert manifest["images"] == [
        {"file": "000_3.png", "prompt": "a cat", "seed": 3},
        {"file": "000_5.png", "prompt": "a cat", "seed": 5},
        {"file": "001_3.png", "prompt": "a dog", "seed": 3},
        {"file": "001_5.png", "prompt": "a dog", "seed": 5},
    ]


def test_output_is_a_new_or_an_empty_folder(engine, dpok, tmp_path):
    (tmp_path / "empty").mkdir()
    assert dpok("sample", "--output", "empty").code == 0
    engine.calls.clear()
    out = dpok("sample").out.strip()
    assert Path(out).parent.parent == Path("samples")
    assert (tmp_path / out).is_file()
    assert asked(engine) == [(SampleConfig().prompts, list(range(16)), None)]
    assert ("grid", 16, 4) in engine.calls


@pytest.mark.usefixtures("run_folder")
def test_a_run_is_drawn_as_it_was_trained(engine, dpok):
    assert dpok("sample", "--run", "old").code == 0
    config = SampleConfig(
        model="some/model",
        prompts=("a lion",),
        num_inference_steps=7,
        guidance_scale=2.5,
        eta=0.5,
    )
    assert engine.calls[:3] == [
        ("check", Path("runs/old/adapter")),
        ("check", "some/model"),
        ("load", config, Path("runs/old/adapter")),
    ]


@pytest.mark.usefixtures("run_folder")
def test_flags_are_over_the_run(engine, dpok):
    dpok("sample", "--run", "old", "--prompt", "a cat", "--eta", "0", "--device", "cpu")
    config = engine.calls[2][1]
    assert (config.prompts, config.eta, config.guidance_scale) == (("a cat",), 0.0, 2.5)
    assert config.device == "cpu"


@pytest.mark.usefixtures("run_folder")
def test_runs_lie_where_the_flag_says(engine, dpok, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert dpok("sample", "--run", "old").code == 2
    assert dpok("sample", "--run", "old", "--runs-dir", "elsewhere").code == 0


@pytest.mark.usefixtures("run_folder")
def test_before_and_after_on_the_same_seeds(engine, dpok, tmp_path):
    result = dpok("sample", "--run", "old", "--before", "--seeds", "0-1", "--output", "new")

    assert Path(result.out.strip()) == Path("new/before_after.png")
    assert names(tmp_path / "new") == [
        "after/000_0.png",
        "after/000_1.png",
        "after/grid.png",
        "before/000_0.png",
        "before/000_1.png",
        "before/grid.png",
        "before_after.png",
        "manifest.json",
    ]
    adapter = str(Path("runs/old/adapter"))
    assert asked(engine) == [(("a lion",), [0, 1], None), (("a lion",), [0, 1], adapter)]
    with Image.open("new/before_after.png") as picture:
        assert picture.size == (16 + 16 + 16, 28 + 8)
    manifest = json.loads(Path("new/manifest.json").read_text())
    assert manifest["adapter"] == adapter
    assert [image["file"] for image in manifest["images"]] == [
        "before/000_0.png",
        "before/000_1.png",
        "after/000_0.png",
        "after/000_1.png",
    ]


def test_an_adapter_folder(engine, dpok, tmp_path):
    (tmp_path / "lora").mkdir()
    assert dpok("sample", "--adapter", "lora", "--prompt", "a cat").code == 0
    assert asked(engine) == [(("a cat",), list(range(16)), "lora")]


def test_settings_can_be_printed(engine, dpok):
    result = dpok("sample", "--preset", "sd15", "--print-config")
    assert result.code == 0
    assert 'model = "stable-diffusion-v1-5/stable-diffusion-v1-5"' in result.out.splitlines()
    assert "guidance_scale = 7.5" in result.out.splitlines()
    assert engine.calls == []
