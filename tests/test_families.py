"""The commands with a pipeline of every family, from its folder."""

import json

import pytest
import torch
from PIL import Image

from dpok_cli.engine.lora.export import write_diffusers
from dpok_cli.engine.lora.files import read_adapter
from dpok_cli.engine.lora.weights import Layer
from support.families import NEWER
from support.rewards import Redness

#: A folder of FLUX.1 does not say which size it is of.
DRAW = "--prompt=cat --device=cpu --num-inference-steps=4 --height=16 --width=16".split()
#: The families that are refused in fp16, and the encoders that it is for.
NAMES = {
    "sd35": ("Stable Diffusion 3 and 3.5", "T5"),
    "flux": ("FLUX.1", "T5"),
    "qwen": ("Qwen-Image", "Qwen2.5-VL"),
    "zimage": ("Z-Image", "Qwen3"),
}
TRAIN = (
    "--reward=redness --samples-per-round=4 --batch-size=3 --updates-per-round=2 --lora-rank=2"
    " --learning-rate=0.05 --lr-schedule=constant --sample-count=2 --evaluation-samples=2"
    " --tracker= --no-noise-window --timestep-fraction=0.5"
).split()


@pytest.fixture(params=NEWER)
def family(request):
    return request.param


@pytest.fixture
def model(family, family_folder, install):
    install(Redness)
    return f"--model={family_folder(family)}"


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def pixels(file):
    with Image.open(file) as picture:
        return picture.tobytes()


def test_train_resume_sample_evaluate_export(dpok, model, family, tmp_path):
    rl = (*TRAIN, "--patience=0")
    result = dpok("train-rl", *DRAW, *rl, model, "--rounds=1", "--name=one", "--seed=3")
    assert (result.code, result.err.count("Error")) == (0, 0), result.err
    # The first and the last step of flow matching have none, and some schedules end near 0.
    noiseless = {"sdxl": 0, "sd35": 3, "qwen": 3}.get(family, 2)
    said = f"{noiseless} of the 4 steps have no noise, so they are not trained on: a round has 4"
    assert (said in result.err) == ("no noise" in result.err) == (noiseless > 0), result.err
    assert dpok("train-rl", "--resume=one", "--rounds=2", "--quiet").code == 0
    whole = dpok("train-rl", *DRAW, *rl, model, "--rounds=2", "--name=two", "--seed=3")
    assert whole.code == 0, whole.err

    runs = tmp_path / "runs"
    records = read(runs / "one/metrics.jsonl")
    assert [record["round"] for record in records] == [1, 2]
    assert all(record["ratio/first_max_dev"] <= 1e-6 for record in records)
    adapter = "adapter/pytorch_lora_weights.safetensors"
    assert (runs / "one" / adapter).read_bytes() == (runs / "two" / adapter).read_bytes()

    drawn = dpok("sample", "--run=one", "--before", "--seeds=0-1", "--output=drawn")
    assert (drawn.code, drawn.err) == (0, "")
    before, after = (pixels(f"drawn/{when}/000_1.png") for when in ("before", "after"))
    assert before != after
    plain = dpok("sample", *DRAW, model, "--seeds=0-1", "--output=plain")
    assert plain.code == 0, plain.err
    assert pixels("plain/000_1.png") == before

    result = dpok("evaluate", "--run=one", "--reward=redness", "--samples=2", "--output=judged")
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "judged/results.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"base", "one"}

    form = "kohya" if family == "sdxl" else "diffusers"
    tools = "ComfyUI or A1111" if family == "sdxl" else "ComfyUI"
    last = whole.out.splitlines()[-1]
    assert last == f"For {tools}: dpok export runs/two --format {form}"
    assert dpok("export", "one", "--format", form, "--output=one.safetensors").code == 0
    assert read_adapter(tmp_path / "one.safetensors").keys() == (
        read_adapter(runs / "one/adapter").keys()
    )
    given = ("--adapter=one.safetensors", "--seeds=0-1", "--output=again")
    assert dpok("sample", *DRAW, model, *given).code == 0
    assert pixels("again/000_1.png") == after


def test_supervised_fine_tuning_from_an_adapter(dpok, model, tmp_path):
    of_rl = ("round", "window", "timestep")
    given = [flag for flag in TRAIN if not any(name in flag for name in of_rl)]
    sft = ("--images=4", "--steps=2", "--gamma=3", "--log-every=1", "--prompt-dropout=0.5")
    result = dpok("train-sft", *DRAW, *given, *sft, model, "--name=one")
    assert result.code == 0, result.err
    again = ("--init-adapter=runs/one/adapter", "--name=two")
    result = dpok("train-rl", *DRAW, *TRAIN, model, "--rounds=1", *again)
    assert result.code == 0, result.err
    one, two = (read_adapter(tmp_path / f"runs/{name}/adapter") for name in ("one", "two"))
    assert [part.keys() for part in one.values()] == [part.keys() for part in two.values()]
    assert dpok("train-rl", "--resume=two", "--rounds=2", "--quiet").code == 0


@pytest.mark.parametrize("command", ["sample", "train-rl"])
def test_an_adapter_of_another_text_encoder_is_refused_before_anything_is_made(
    dpok, family_folder, install, tmp_path, command
):
    install(Redness)
    layer = Layer(torch.zeros(2, 5), torch.zeros(16, 2), 2.0)
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    write_diffusers({"text_encoder": {name: layer}}, tmp_path / "mine.safetensors")
    given = {"sample": ["--adapter=mine.safetensors", "--output=drawn"], "train-rl": TRAIN}[command]
    more = ["--init-adapter=mine.safetensors"] if command == "train-rl" else []
    model = f"--model={family_folder('sdxl')}"
    result = dpok(command, *DRAW, *given, *more, model)
    assert result.code == 2
    said = "mine.safetensors does not fit this model: its weights for text_encoder."
    assert said in result.err.splitlines()[-1], result.err
    assert [each.name for each in tmp_path.iterdir()] == ["mine.safetensors"]


def test_what_a_family_cannot_do_is_refused_before_anything_is_made(dpok, model, family, tmp_path):
    cases = {
        "--lora-targets=to_z": "Error: --lora-targets 'to_z': the denoiser has no such layer.\n",
    }
    if family != "sdxl":
        name, encoder = NAMES[family]
        cases["--height=24"] = f"Error: --height 24: must be a multiple of 16 for {name}.\n"
        said = f"the text encoder {encoder} of {name} overflows in it. Use --precision bf16.\n"
        cases["--precision=fp16"] = f"Error: --precision fp16: {said}"
    if family == "flux":
        said = "FLUX.1 takes none, as its guidance is an input of the model.\n"
        cases["--negative-prompt=grey"] = f"Error: --negative-prompt: {said}"
    for flag, said in cases.items():
        result = dpok("train-rl", *DRAW, *TRAIN, model, "--rounds=1", flag, "--quiet")
        assert (result.code, result.err) == (2, said)
        assert list(tmp_path.iterdir()) == []
