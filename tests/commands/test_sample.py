"""`dpok sample`: which images it draws, with what, and where it puts them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dpok_cli.config import SampleConfig, to_toml
from dpok_cli.engine.rl.settings import TrainRLConfig


@pytest.fixture
def sample(dpok, pipeline_folder):
    """Run `dpok sample` on the very small pipeline, as quickly as can be."""
    flags = (f"--model={pipeline_folder}", "--num-inference-steps=2", "--device=cpu")
    return lambda *more: dpok("sample", *flags, *more)


@pytest.fixture
def trained(pipeline_folder, adapters, tmp_path):
    """A run, "old", that was trained on a device that is not here."""
    folder = tmp_path / "runs" / "old"
    shutil.copytree(adapters["shaken"], folder / "adapter")
    config = TrainRLConfig(
        model=str(pipeline_folder),
        prompts=("a lion",),
        num_inference_steps=3,
        guidance_scale=2.5,
        eta=0.5,
        seed=9,
        device="cuda:3",
        rounds=2,
    )
    (folder / "config.toml").write_text(to_toml(config))
    return folder


def names(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))


def manifest(folder):
    return json.loads((Path(folder) / "manifest.json").read_text())


def pixels(file):
    with Image.open(file) as picture:
        return picture.tobytes()


def cell(file, column, row):
    """The pixels of an image in a grid, at its own size: those of 16 pixels are enlarged to 192."""
    with Image.open(file) as picture:
        left, top = column * (192 + 24), row * (192 + 24)
        return picture.crop((left, top, left + 192, top + 192)).resize((16, 16), 0).tobytes()


def test_the_end_of_a_long_prompt_is_named_once(sample):
    long = "a cat " * 60
    result = sample("--prompt", long, "--prompt", "a dog", "--seeds=0-1", "--output=new")
    (line,) = result.err.splitlines()
    assert re.match("The text encoder does not see '[a-z]+ (a cat )+a cat' at the end", line)
    assert line.endswith(f"at the end of {long!r}.")
    quiet = sample("--prompt", long, "--seeds=0", "--output=other", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")


def test_base_model(sample, tmp_path):
    flags = ("--prompt", "a cat", "--prompt", "a dog", "--seeds", "3,5", "--output", "new")
    result = sample(*flags)

    assert (result.code, result.err) == (0, "")
    assert Path(result.out.strip()) == Path("new/grid.png")
    images = ["000_3.png", "000_5.png", "001_3.png", "001_5.png"]
    assert names(tmp_path / "new") == [*images, "grid.png", "manifest.json"]
    # Each prompt and each seed has its own image; the grid has a row for each prompt.
    assert len({pixels(f"new/{name}") for name in images}) == 4
    with Image.open("new/grid.png") as grid:
        assert grid.size == (2 * 192 + 24, 2 * 192 + 24)
    for place, name in enumerate(images):
        assert cell("new/grid.png", place % 2, place // 2) == pixels(f"new/{name}")
    assert manifest("new")["adapter"] is None
    assert manifest("new")["settings"]["num_inference_steps"] == 2
    assert manifest("new")["images"] == [
        {"file": "000_3.png", "prompt": "a cat", "seed": 3},
        {"file": "000_5.png", "prompt": "a cat", "seed": 5},
        {"file": "001_3.png", "prompt": "a dog", "seed": 3},
        {"file": "001_5.png", "prompt": "a dog", "seed": 5},
    ]


def test_output_is_a_new_or_an_empty_folder(sample, tmp_path):
    (tmp_path / "empty").mkdir()
    assert sample("--output", "empty", "--seeds", "0").code == 0
    assert names(tmp_path / "empty") == ["000_0.png", "grid.png", "manifest.json"]
    out = sample("--seeds", "0").out.strip()
    assert Path(out).parent.parent == Path("samples")
    assert (tmp_path / out).is_file()


def test_sixteen_seeds_are_the_default_in_a_square(sample):
    assert sample("--output", "new").code == 0
    drawn = [(image["prompt"], image["seed"]) for image in manifest("new")["images"]]
    assert drawn == [(SampleConfig().prompts[0], seed) for seed in range(16)]
    with Image.open("new/grid.png") as grid:
        assert grid.size == (4 * 192 + 3 * 24, 4 * 192 + 3 * 24)
    assert cell("new/grid.png", 1, 3) == pixels("new/000_13.png")


def test_a_run_is_drawn_as_it_was_trained(trained, dpok, sample):
    result = dpok("sample", "--run", "old", "--seeds", "0", "--output", "new")
    assert result.code == 0, result.err
    settings = manifest("new")["settings"]
    asked = {"num_inference_steps": 3, "guidance_scale": 2.5, "eta": 0.5, "prompts": ["a lion"]}
    assert asked.items() <= settings.items()
    assert settings["device"] == "auto"  # not the run's, which may not be here
    assert manifest("new")["adapter"] == str(Path("runs/old/adapter"))
    given = ("--num-inference-steps=3", "--guidance-scale=2.5", "--eta=0.5", "--prompt=a lion")
    adapter = f"--adapter={trained / 'adapter'}"
    assert sample(*given, adapter, "--seeds=0", "--output=same").code == 0
    assert pixels("new/000_0.png") == pixels("same/000_0.png")
    assert sample(*given, "--seeds=0", "--output=base").code == 0
    assert pixels("new/000_0.png") != pixels("base/000_0.png")


@pytest.mark.usefixtures("trained")
def test_flags_are_over_the_run(dpok):
    flags = ("--prompt", "a cat", "--eta", "0", "--device", "cpu", "--seeds", "0")
    assert dpok("sample", "--run", "old", *flags, "--output", "new").code == 0
    asked = {"prompts": ["a cat"], "eta": 0.0, "guidance_scale": 2.5, "device": "cpu"}
    assert asked.items() <= manifest("new")["settings"].items()


@pytest.mark.usefixtures("trained")
def test_runs_lie_where_the_flag_says(dpok, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    missing = dpok("sample", "--run", "old", "--seeds", "0")
    assert missing.code == 2
    assert "old" in missing.err
    assert dpok("sample", "--run", "old", "--runs-dir", "elsewhere", "--seeds", "0").code == 0


@pytest.mark.usefixtures("trained")
def test_before_and_after_on_the_same_seeds(dpok, sample, tmp_path):
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
    for seed in (0, 1):
        assert pixels(f"new/before/000_{seed}.png") != pixels(f"new/after/000_{seed}.png")
    given = ("--num-inference-steps=3", "--guidance-scale=2.5", "--eta=0.5", "--prompt=a lion")
    assert sample(*given, "--seeds=0-1", "--output=base").code == 0
    for name in ("000_0.png", "000_1.png", "grid.png"):
        assert pixels(f"new/before/{name}") == pixels(f"base/{name}")
    grids = [Image.open(f"new/{side}/grid.png") for side in ("before", "after")]
    with Image.open("new/before_after.png") as picture:
        width, height = picture.size
        assert width > 2 * grids[0].width
        assert height > grids[0].height
        for grid, left in zip(grids, (0, width - grids[1].width), strict=True):
            box = (left, height - grid.height, left + grid.width, height)
            assert picture.crop(box).tobytes() == grid.tobytes()
    assert manifest("new")["adapter"] == str(Path("runs/old/adapter"))
    assert [image["file"] for image in manifest("new")["images"]] == [
        "before/000_0.png",
        "before/000_1.png",
        "after/000_0.png",
        "after/000_1.png",
    ]


def test_an_adapter_folder(sample, adapters):
    prompt = ("--prompt", "a cat", "--seeds", "4")
    for name in ("shaken", "none"):
        assert sample("--adapter", str(adapters[name]), *prompt, "--output", name).code == 0
        assert manifest(name)["adapter"] == str(adapters[name])
    assert sample(*prompt, "--output", "base").code == 0
    drawn = {name: pixels(f"{name}/000_4.png") for name in ("shaken", "none", "base")}
    assert drawn["none"] == drawn["base"] != drawn["shaken"]


def test_settings_can_be_printed(dpok, tmp_path):
    result = dpok("sample", "--preset", "sd15", "--print-config")
    assert (result.code, result.err) == (0, "")
    assert 'model = "stable-diffusion-v1-5/stable-diffusion-v1-5"' in result.out.splitlines()
    assert "guidance_scale = 7.5" in result.out.splitlines()
    assert list(tmp_path.iterdir()) == []
