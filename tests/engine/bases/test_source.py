"""Models and adapters are checked before torch is imported."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpok_cli import tiny
from dpok_cli.config import SampleConfig
from dpok_cli.engine.bases.families import FAMILIES
from dpok_cli.engine.bases.source import check_source, loading_code, locate, variant
from dpok_cli.engine.lora.files import ADAPTER_FILE, check_adapter
from dpok_cli.errors import InputError

KIND = "StableDiffusionPipeline"


def check(model, **given):
    return check_source(SampleConfig(model=str(model), **given))


def refused(model, **given):
    with pytest.raises(InputError) as raised:
        check(model, **given)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def index(folder, **contents):
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(contents))
    return str(folder)


@pytest.fixture
def on_this_machine(tmp_path, monkeypatch):
    """Puts files of a hub id into a hub cache: ``on_this_machine(hub_id, name=text)``."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(hub_id, **contents):
        folder = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("0" * 40)
        index(snapshot, **contents)

    return put


def test_where_models_are():
    assert locate("tiny") == str(tiny.folder("pipeline"))
    assert locate("some/model") == "some/model"


def test_pipelines_pass(tmp_path, pipeline_folder):
    assert check("tiny") == check(pipeline_folder) == "StableDiffusionPipeline"
    for kind in FAMILIES:
        assert check(index(tmp_path, _class_name=kind)) == kind


@pytest.mark.parametrize("kind", FAMILIES)
def test_hub_ids_pass_by_their_index(on_this_machine, kind):
    on_this_machine("some/model", _class_name=kind)
    assert check("some/model") == kind


@pytest.mark.parametrize("kind", ["Flux2Pipeline", "StableDiffusionInpaintPipeline"])
def test_hub_ids_of_other_families_are_refused_by_their_class(on_this_machine, kind):
    on_this_machine("some/model", _class_name=kind)
    assert refused("some/model") == (
        f"some/model holds a {kind}; only Stable Diffusion v1 and v2 (StableDiffusionPipeline),"
        " Stable Diffusion XL (StableDiffusionXLPipeline), Stable Diffusion 3 and 3.5"
        " (StableDiffusion3Pipeline), FLUX.1 (FluxPipeline),"
        " Qwen-Image (QwenImagePipeline), Z-Image (ZImagePipeline) can be used."
    )


def test_a_hub_id_that_is_not_here_is_refused(on_this_machine):
    said = refused("nobody/no-such-model")
    assert said.startswith("Cannot load the model nobody/no-such-model: ")
    assert said.endswith("or a hub id that this machine has or can download.")


@pytest.mark.parametrize("model", ["./nowhere", "/no/where", "../no", "nowhere", "a/b/c", "~/no"])
def test_a_folder_that_is_not_there_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nobody")
    shown = model.replace("~", "/nobody")
    assert refused(model) == (
        f"There is no model folder {shown}. Give --model 'tiny', a folder or a hub id."
    )
    assert refused("tiny", vae=model) == (
        f"There is no VAE folder or file {shown}. Give --vae a folder or a hub id."
    )


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    assert "is no diffusers pipeline: it has no model_index.json" in refused(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, least_lora):
    file = tmp_path / "model.safetensors"
    file.write_text("")
    assert "model.safetensors cannot be read: " in refused(file)
    file.write_bytes(least_lora)
    assert "model.safetensors is no checkpoint of a whole model: " in refused(file)
    pickle = tmp_path / "model.ckpt"
    pickle.write_text("")
    assert "model.ckpt is not safetensors, the only format of single files" in refused(pickle)
    assert "Give --vae another file" in refused("tiny", vae=str(pickle))


def test_the_configuration_is_for_a_file(tmp_path, pipeline_folder):
    assert refused(pipeline_folder, model_config=str(pipeline_folder)) == (
        "--model-config is for a --model that is a file: leave it out."
    )
    file = tmp_path / "model.safetensors"
    weights = {"model.diffusion_model.a": np.zeros(1)}
    save_file(weights, file)
    assert check(file, model_config=str(pipeline_folder)) == "StableDiffusionPipeline"
    assert "Give --model-config a folder that" in refused(file, model_config=str(tmp_path))
    other = index(tmp_path / "other", _class_name="StableDiffusionInpaintPipeline")
    assert "other holds a StableDiffusionInpaintPipeline" in refused(file, model_config=other)
    xl = index(tmp_path / "xl", _class_name="StableDiffusionXLPipeline")
    assert refused(file, model_config=xl) == (
        f"--model-config {xl} is of a StableDiffusionXLPipeline, and {file} has the weights of a"
        " StableDiffusionPipeline. Give --model-config the folder of one."
    )
    save_file(weights | {"conditioner.embedders.1.model.a": np.zeros(1)}, file)
    assert check(file) == check(file, model_config=xl) == "StableDiffusionXLPipeline"


def test_another_pipeline_is_refused_by_its_name(tmp_path):
    folder = index(tmp_path, _class_name="FluxFillPipeline")
    assert "holds a FluxFillPipeline; only Stable" in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", "\udcff"])
def test_an_index_that_cannot_be_read_is_refused(tmp_path, text):
    file = tmp_path / "model_index.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "model_index.json cannot be read as a pipeline's index" in refused(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["diffusion_pytorch_model.safetensors"], None),
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"], None),
        (["diffusion_pytorch_model.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], None),
        (["diffusion_pytorch_model.bf16.safetensors"], "bf16"),
        (
            ["diffusion_pytorch_model.bf16.safetensors", "diffusion_pytorch_model.fp16.bin"],
            "fp16",
        ),
        ([], None),
    ],
)
def test_the_only_variant_of_a_folder(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).write_text("")
    assert variant(tmp_path) == expected


def test_the_code_that_loads_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.safetensors").write_text("")
    code = loading_code(SampleConfig(model="my.safetensors", model_config="a/b", vae="c/d"), KIND)
    assert code.splitlines() == [
        "from diffusers import AutoencoderKL",
        "",
        'vae = AutoencoderKL.from_pretrained("c/d")',
        f'pipe = StableDiffusionPipeline.from_single_file("{tmp_path}/my.safetensors", vae=vae,'
        ' config="a/b")',
    ]
    assert loading_code(SampleConfig(model="a/b"), "FluxPipeline") == (
        'pipe = FluxPipeline.from_pretrained("a/b")'
    )


def test_adapters_are_safetensors(tmp_path, least_lora):
    (tmp_path / ADAPTER_FILE).write_bytes(least_lora)
    check_adapter(tmp_path)
    check_adapter(tmp_path / ADAPTER_FILE)
    with pytest.raises(InputError, match=r"There is no adapter .*nowhere. Give --adapter a run's"):
        check_adapter(tmp_path / "nowhere")
    (tmp_path / "lora.bin").write_text("")
    with pytest.raises(InputError, match=r"lora.bin is not safetensors"):
        check_adapter(tmp_path / "lora.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"There is no adapter .*empty/{ADAPTER_FILE}"):
        check_adapter(tmp_path / "empty")
    for content in (b"", least_lora[:-1], b"\x80\x04."):
        (tmp_path / ADAPTER_FILE).write_bytes(content)
        with pytest.raises(InputError, match=f"The adapter .*{ADAPTER_FILE} cannot be read"):
            check_adapter(tmp_path)
    (tmp_path / ADAPTER_FILE).write_bytes(least_lora.replace(b".lora_A.", b".conv_1."))
    with pytest.raises(InputError, match=r"no LoRA weights. Give --init-adapter a run's"):
        check_adapter(tmp_path, "--init-adapter")


def test_no_torch_is_needed():
    heavy = "torch diffusers transformers numpy PIL".split()
    code = (
        "import sys, dpok_cli.engine.runs.folder, dpok_cli.engine.bases.source;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout == "[]\n", printed.stderr


@pytest.mark.parametrize(("kind", "t5"), [("StableDiffusion3Pipeline", 3), ("FluxPipeline", 2)])
def test_t5_is_not_used_in_fp16(kind, t5, tmp_path, on_this_machine):
    parts = {f"text_encoder_{t5}": ["transformers", "T5EncoderModel"], "_class_name": kind}
    folder = index(tmp_path / "model", **parts)
    on_this_machine("some/model", **parts)
    for model in (folder, "some/model"):
        assert refused(model, precision="fp16") == (
            f"--precision fp16: the text encoder T5 of {FAMILIES[kind].name} overflows in it."
            " Use --precision bf16."
        )
        assert check(model, precision="bf16") == check(model, precision="fp32") == kind


def test_what_has_no_t5_is_used_in_fp16(tmp_path):
    kind, without = "StableDiffusion3Pipeline", {"text_encoder_3": [None, None]}
    assert check(index(tmp_path / "sd3", _class_name=kind, **without), precision="fp16") == kind
    for kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        assert check(index(tmp_path / kind, _class_name=kind), precision="fp16") == kind
