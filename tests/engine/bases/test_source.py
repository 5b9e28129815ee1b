"""Models and adapters are checked before torch is imported."""

import json
import subprocess
import sys

import pytest

from dpok_cli import tiny
from dpok_cli.engine.bases.source import check_source, locate
from dpok_cli.engine.lora.files import ADAPTER_FILE, check_adapter
from dpok_cli.errors import InputError


def index(folder, **contents):
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(contents))
    return str(folder)


def test_where_models_are():
    assert locate("tiny") == str(tiny.folder("pipeline"))
    assert locate("some/model") == "some/model"


def test_hub_ids_and_pipelines_pass(tmp_path):
    check_source("stable-diffusion-v1-5/stable-diffusion-v1-5")
    check_source(index(tmp_path, _class_name="StableDiffusionPipeline"))


@pytest.mark.parametrize("model", ["./nowhere", "/no/where", "../no", "nowhere", "a/b/c", "~/no"])
def test_a_folder_that_is_not_there_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        check_source(model)
    assert str(raised.value) == (
        f"There is no model folder {model}. Give --model 'tiny', a folder or a hub id."
    )


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no diffusers pipeline: it has no model_index.json"):
        check_source(str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_text("")
    with pytest.raises(InputError, match="model.safetensors is no diffusers pipeline"):
        check_source(str(file))


def test_another_pipeline_is_refused_by_its_name(tmp_path):
    folder = index(tmp_path, _class_name="StableDiffusionXLPipeline")
    with pytest.raises(InputError, match="holds a StableDiffusionXLPipeline; only Stable"):
        check_source(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", "\udcff"])
def test_an_index_that_cannot_be_read_is_refused(tmp_path, text):
    file = tmp_path / "model_index.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="model_index.json cannot be read as a pipeline's index"):
        check_source(str(tmp_path))


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
