"""LoRA files as kohya's scripts, peft and older training code leave them, given to each command."""

import shutil
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from dpok_cli.engine.lora.export import write
from dpok_cli.engine.lora.files import read_adapter
from dpok_cli.engine.lora.weights import rank_and_alpha, targets
from engine.lora.conftest import equal

DRAW = ("--prompt=a cat", "--num-inference-steps=2", "--device=cpu")
TRAIN = (
    "--rounds=1 --samples-per-round=2 --updates-per-round=1 --batch-size=2"
    " --reward=jpeg-compressibility --evaluation-samples=0 --sample-every=0 --tracker="
).split()


@pytest.fixture
def files(template, adapters, tmp_path):
    """kohya.safetensors with text-encoder weights, peft/ and old.safetensors."""
    import torch
    from safetensors.torch import load_file, save_file

    from dpok_cli.engine.lora.weights import Layer

    lora = read_adapter(adapters["shaken"])
    (file,) = adapters["shaken"].glob("*.safetensors")
    old = {}
    for name, weight in load_file(file).items():
        layer, _, half = name.removeprefix("unet.").partition(".lora_")
        head, _, kind = layer.removesuffix(".0").rpartition(".")
        half = {"A.weight": "down.weight", "B.weight": "up.weight"}[half]
        old[f"{head}.processor.{kind}_lora.{half}"] = weight
    save_file(old, tmp_path / "old.safetensors")
    write(lora, "peft", tmp_path / "peft")
    for name, layer in lora["unet"].items():
        lora["unet"][name] = layer._replace(alpha=2.0)
    lora["text_encoder"] = {
        f"text_model.{name}": Layer(
            torch.ones(1, module.in_features), torch.ones(module.out_features, 1), 0.5
        )
        for name, module in template.text_encoder.named_modules()
        if name.endswith(("q_proj", "fc1"))
    }
    write(lora, "kohya", tmp_path / "kohya.safetensors")
    return lora


def pixels(file):
    with Image.open(file) as image:
        return image.tobytes()


def test_before_is_the_base_also_with_text_encoder_weights(dpok, files, pipeline_folder):
    given = (*DRAW, f"--model={pipeline_folder}", "--seeds=0")
    drawn = dpok("sample", *given, "--adapter=kohya.safetensors", "--before", "--output=both")
    assert (drawn.code, drawn.err) == (0, "")
    assert dpok("sample", *given, "--output=base").code == 0
    assert pixels("both/before/000_0.png") == pixels("base/000_0.png")
    assert pixels("both/after/000_0.png") != pixels("base/000_0.png")


@pytest.mark.parametrize("adapter", ["old.safetensors", "peft", "peft/adapter_model.safetensors"])
def test_the_same_adapter_in_other_forms(dpok, files, adapters, pipeline_folder, adapter):
    given = (*DRAW, f"--model={pipeline_folder}", "--seeds=0")
    for name, path in (("own", adapters["shaken"]), ("theirs", adapter)):
        result = dpok("sample", *given, f"--adapter={path}", f"--output={name}")
        assert (result.code, result.err) == (0, "")
    assert pixels("own/000_0.png") == pixels("theirs/000_0.png")


def test_each_of_them_is_evaluated(dpok, files, pipeline_folder):
    given = (*DRAW, f"--model={pipeline_folder}", "--samples=1", "--reward=jpeg-compressibility")
    paths = ("kohya.safetensors", "old.safetensors", "peft")
    result = dpok("evaluate", *given, *(f"--adapter={path}" for path in paths), "--quiet")
    assert result.code == 0, result.err
    assert "kohya" in result.out
    assert "peft" in result.out


@pytest.mark.parametrize("command", ["train-rl", "train-sft"])
def test_a_training_starts_from_it_with_its_rank_alpha_and_targets(
    dpok, files, pipeline_folder, command
):
    given = [*TRAIN, f"--model={pipeline_folder}", "--init-adapter=kohya.safetensors", "--name=x"]
    if command == "train-sft":
        given = [flag for flag in given if "round" not in flag] + [
            "--images=2",
            "--steps=1",
            "--gamma=3",
        ]
    result = dpok(command, *DRAW, *given, "--learning-rate=1e-9")
    assert result.code == 0, result.err
    rank, alpha = rank_and_alpha(files["unet"])
    config = tomllib.loads(Path("runs/x/config.toml").read_text())
    assert (config["lora_rank"], config["lora_alpha"]) == (rank, alpha) == (4, 2.0)
    assert sorted(config["lora_targets"]) == targets(files["unet"])
    trained = read_adapter(Path("runs/x/adapter"))
    assert equal({"text_encoder": trained["text_encoder"]}, {"text_encoder": files["text_encoder"]})
    assert trained["unet"].keys() == files["unet"].keys()
    for name, layer in trained["unet"].items():
        assert (layer.down - files["unet"][name].down).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--lora-rank=8", "is of rank 4, and lora_rank is 8: give --lora-rank 4."),
        ("--lora-alpha=4", "has another scale: give --lora-alpha 2."),
        ("--lora-targets=to_q", "not on to_q: give --lora-targets to_k"),
    ],
)
def test_a_flag_that_says_otherwise_is_refused(dpok, files, pipeline_folder, flag, said):
    given = (f"--model={pipeline_folder}", "--init-adapter=kohya.safetensors", flag)
    result = dpok("train-rl", *DRAW, *TRAIN, *given)
    assert result.code == 2
    assert said in result.err
    assert result.err.splitlines()[-1].startswith("Error: ")
    assert not Path("runs").exists()


def test_an_adapter_of_a_model_with_two_text_encoders(dpok, files, pipeline_folder, tmp_path):
    """kohya's of SDXL: what is for the second text encoder has no place in this model."""
    import torch
    from safetensors.torch import save_file

    layer = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    weights = {f"{layer}.lora_down.weight": torch.ones(1, 16)}
    weights[f"{layer}.lora_up.weight"] = torch.ones(32, 1)
    save_file(weights, tmp_path / "xl.safetensors")
    given = (*DRAW, f"--model={pipeline_folder}", "--adapter=xl.safetensors", "--output=new")
    result = dpok("sample", *given)
    assert result.code == 2
    assert "xl.safetensors does not fit this model, which has no text_encoder_2." in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_run_goes_to_another_tool_and_back(dpok, pipeline_folder):
    train = ("train-rl", *DRAW, *TRAIN, f"--model={pipeline_folder}", "--name=x")
    targets = ("--lora-targets=proj_in", "--lora-targets=to_q", "--lora-rank=2")
    result = dpok(*train, *targets)
    assert result.out.splitlines()[-1] == (
        "For ComfyUI or A1111: dpok export runs/x --format kohya"
    )
    command = result.out.splitlines()[-1].partition(": dpok ")[2].split()
    made = Path(dpok(*command).out.strip())
    assert equal(read_adapter(made), read_adapter(Path("runs/x/adapter")))
    shutil.rmtree("runs/x/adapter")
    given = (*DRAW, f"--model={pipeline_folder}", f"--adapter={made}", "--seeds=0", "--output=new")
    assert dpok("sample", *given).code == 0
