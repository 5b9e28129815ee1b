"""Stable Diffusion as people own it: one checkpoint file, half-precision files only, another VAE.

All of it works without the hub.
"""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageChops

TRAIN = (
    "--rounds=1 --samples-per-round=2 --updates-per-round=1 --batch-size=2 --lora-rank=2"
    " --reward=jpeg-compressibility --evaluation-samples=0 --sample-every=0 --tracker="
).split()
DRAW = ("--prompt=a cat", "--num-inference-steps=2", "--device=cpu")


@pytest.fixture(scope="module")
def checkpoint(template, tmp_path_factory):
    """The very small pipeline as one file, in the names of Stable Diffusion's first release."""
    from safetensors.torch import save_file

    from support.ldm import checkpoint

    file = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_file(checkpoint(template), file)
    return file


@pytest.fixture(scope="module")
def configuration(pipeline_folder, tmp_path_factory):
    """The configuration of the very small pipeline, without weights."""
    folder = tmp_path_factory.mktemp("configuration") / "pipeline"
    shutil.copytree(pipeline_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def half(template, tmp_path):
    """A folder of which there are half-precision files only."""
    import copy

    import torch

    copy.deepcopy(template).to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert len(list((tmp_path / "half").rglob("*.fp16.safetensors"))) == 3
    assert len(list((tmp_path / "half").rglob("*.safetensors"))) == 3
    return tmp_path / "half"


def difference(one, other):
    with Image.open(one) as first, Image.open(other) as second:
        return max(high for _, high in ImageChops.difference(first, second).getextrema())


def test_a_checkpoint_file_draws_what_the_pipeline_draws(
    dpok, checkpoint, configuration, pipeline_folder
):
    model = (f"--model={checkpoint}", f"--model-config={configuration}")
    result = dpok("sample", *DRAW, *model, "--seeds=0", "--output=file")
    assert (result.code, result.err) == (0, "")
    folder = f"--model={pipeline_folder}"
    assert dpok("sample", *DRAW, folder, "--seeds=0", "--output=folder").code == 0
    assert difference("file/000_0.png", "folder/000_0.png") == 0


def test_a_checkpoint_file_is_trained_resumed_and_evaluated(dpok, checkpoint, configuration):
    model = (f"--model={checkpoint}", f"--model-config={configuration}")
    result = dpok("train-rl", *DRAW, *model, *TRAIN, "--name=x")
    assert result.code == 0, result.err
    assert dpok("train-rl", "--resume=x", "--rounds=2").code == 0
    drawn = dpok("sample", "--run=x", "--before", "--seeds=0", "--output=both")
    assert (drawn.code, drawn.err) == (0, "")
    scored = dpok("evaluate", "--run=x", "--samples=1", "--reward=jpeg-compressibility")
    assert scored.code == 0, scored.err
    card = Path("runs/x/adapter/README.md").read_text()
    assert f'from_single_file("{checkpoint}", config="{configuration}")' in card
    merged = dpok("export", "x", "--merge")
    assert merged.code == 0, merged.err
    assert json.loads(Path("x-merged/model_index.json").read_text())["_class_name"] == (
        "StableDiffusionPipeline"
    )


def test_without_its_configuration_one_line_says_what_to_give(dpok, checkpoint, tmp_path):
    result = dpok("train-rl", *DRAW, f"--model={checkpoint}", *TRAIN)
    assert result.code == 2
    assert "it needs the configuration of stable-diffusion-v1-5/stable-diffusion-v1-5" in result.err
    assert "Give --model-config the folder of a pipeline of this kind" in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        (
            "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",
            (4,),
            "stabilityai/stable-diffusion-xl-refiner-1.0's (xl_refiner)",
        ),
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            (4, 9, 3, 3),
            "stable-diffusion-v1-5/stable-diffusion-inpainting's (inpainting)",
        ),
    ],
)
def test_checkpoint_files_of_other_families(dpok, tmp_path, name, shape, kind):
    """Their families are told by the weights that diffusers tells them by."""
    import torch
    from safetensors.torch import save_file

    weights = {name: torch.zeros(shape), "model.diffusion_model.a": torch.zeros(1)}
    save_file(weights, tmp_path / "other.safetensors")
    result = dpok("train-rl", *DRAW, "--model=other.safetensors", *TRAIN)
    assert result.code == 2
    assert f"other.safetensors is a checkpoint like {kind}; only Stable Diffusion" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_half_precision_files_only(dpok, half, pipeline_folder):
    given = ("--seeds=0", "--output=half-images", f"--model={half}")
    result = dpok("sample", *DRAW, *given)
    assert (result.code, result.err) == (0, "")
    folder = f"--model={pipeline_folder}"
    assert dpok("sample", *DRAW, folder, "--seeds=0", "--output=full").code == 0
    assert 0 < difference("half-images/000_0.png", "full/000_0.png") < 30
    assert dpok("train-rl", *DRAW, f"--model={half}", *TRAIN).code == 0


@pytest.fixture
def other_vae(tmp_path):
    """Another VAE: its pipeline, its own folder, and its file in the first release's names."""
    from safetensors.torch import save_file

    from support.ldm import checkpoint
    from support.pipelines import make_pipeline

    pipeline = make_pipeline(seed=1)
    pipeline.save_pretrained(tmp_path / "other")
    pipeline.vae.save_pretrained(tmp_path / "vae")
    prefix = "first_stage_model."
    weights = {
        name.removeprefix(prefix): weight
        for name, weight in checkpoint(pipeline).items()
        if name.startswith(prefix)
    }
    save_file(weights, tmp_path / "vae.safetensors")


@pytest.mark.parametrize("vae", ["other", "vae", "vae.safetensors"])
def test_another_vae(dpok, pipeline_folder, other_vae, tmp_path, vae):
    model = f"--model={pipeline_folder}"
    shutil.copytree(pipeline_folder, tmp_path / "expected")
    shutil.rmtree(tmp_path / "expected/vae")
    shutil.copytree(tmp_path / "vae", tmp_path / "expected/vae")
    for name, given in (("own", [model]), ("given", [model, f"--vae={vae}"])):
        result = dpok("sample", *DRAW, *given, "--seeds=0", f"--output={name}")
        assert (result.code, result.err) == (0, "")
    assert dpok("sample", *DRAW, "--model=expected", "--seeds=0", "--output=images").code == 0
    assert difference("given/000_0.png", "images/000_0.png") == 0
    assert difference("given/000_0.png", "own/000_0.png") > 5


def test_another_vae_with_a_checkpoint_file(dpok, checkpoint, configuration, other_vae):
    model = (f"--model={checkpoint}", f"--model-config={configuration}", "--vae=vae.safetensors")
    assert dpok("train-rl", *DRAW, *model, *TRAIN, "--name=x").code == 0
    result = dpok("sample", "--run=x", "--seeds=0", "--output=new")
    assert (result.code, result.err) == (0, "")
    assert "vae=vae" in Path("runs/x/adapter/README.md").read_text()


def test_a_vae_that_is_none(dpok, pipeline_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    result = dpok("sample", *DRAW, f"--model={pipeline_folder}", "--vae=empty", "--output=new")
    assert result.code == 2
    assert result.err.startswith("Error: Cannot load the VAE empty: ")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_an_inpainting_unet_in_a_plain_pipeline(dpok, pipeline_folder, tmp_path):
    """Its model_index.json says StableDiffusionPipeline; the UNet takes the mask's channels too."""
    import torch
    from diffusers import UNet2DConditionModel

    folder = tmp_path / "inpainting"
    shutil.copytree(pipeline_folder, folder)
    config = dict(UNet2DConditionModel.load_config(folder / "unet")) | {"in_channels": 9}
    with torch.random.fork_rng():
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    result = dpok("train-rl", *DRAW, f"--model={folder}", *TRAIN)
    assert result.code == 2
    assert "its unet takes 9 channels and its VAE's latents have 4." in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["inpainting"]


@pytest.mark.parametrize("kind", ["Flux2Pipeline", "StableDiffusionInpaintPipeline"])
def test_a_hub_id_of_another_family(dpok, tmp_path, monkeypatch, kind):
    """Its model_index.json is on this machine, and nothing else of it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub/models--some--model"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "snapshots/1/model_index.json").write_text(json.dumps({"_class_name": kind}))
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("1")
    result = dpok("train-rl", *DRAW, "--model=some/model", *TRAIN)
    assert result.code == 2
    assert result.err.startswith(f"Error: some/model holds a {kind}; only Stable Diffusion v1 and")
    assert result.err.endswith(", Z-Image (ZImagePipeline) can be used.\n")
    assert result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
