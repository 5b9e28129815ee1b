"""Loading a pipeline and an adapter, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpok_cli.config import SampleConfig
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.lora.files import ADAPTER_FILE
from dpok_cli.errors import InputError

# ---------------------------------------------------------------------------------- bad adapters


def refused(config, adapter):
    with pytest.raises(InputError) as raised:
        load(config, adapter)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_an_adapter_of_another_base_is_refused(build, make_adapter, make_config):
    _, adapter = make_adapter(model=DiffusionModel(build(blocks=(8, 24))))
    message = refused(make_config(SampleConfig), adapter)
    assert str(adapter) in message
    assert "does not fit this model" in message


@pytest.mark.parametrize(
    ("block", "elsewhere"), [("mid_block.", "mad_block."), ("_blocks.", "_b.")]
)
def test_an_adapter_of_layers_that_are_not_there_is_refused(
    make_adapter, make_config, block, elsewhere
):
    _, adapter = make_adapter()
    file = adapter / ADAPTER_FILE
    weights = load_file(file)
    moved = {key.replace(block, elsewhere): weight for key, weight in weights.items()}
    assert moved.keys() != weights.keys()
    save_file(moved, file)
    assert "does not fit this model" in refused(make_config(SampleConfig), adapter)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_a_truncated_adapter_is_refused(make_adapter, make_config):
    _, adapter = make_adapter()
    truncate(adapter / ADAPTER_FILE)
    assert str(adapter) in refused(make_config(SampleConfig), adapter)


def test_no_pickle_is_taken_for_a_truncated_adapter(make_adapter, make_config):
    _, adapter = make_adapter()
    weights = load_file(adapter / ADAPTER_FILE)
    torch.save(weights, adapter / "pytorch_lora_weights.bin")
    truncate(adapter / ADAPTER_FILE)
    assert str(adapter) in refused(make_config(SampleConfig), adapter)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_a_pickled_adapter_is_refused(make_config, tmp_path, suffix):
    file = tmp_path / f"pytorch_lora_weights{suffix}"
    torch.save({"a": torch.zeros(1)}, file)
    assert refused(make_config(SampleConfig), file) == (
        f"{file} is not safetensors, the only format that is read. Give --adapter a"
        " run's adapter folder."
    )
    assert str(tmp_path / ADAPTER_FILE) in refused(make_config(SampleConfig), tmp_path)


def test_weights_that_are_no_adapter_are_refused(make_config, tmp_path):
    save_file({"conv_in.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / ADAPTER_FILE)
    assert str(tmp_path) in refused(make_config(SampleConfig), tmp_path)


# ---------------------------------------------------------------------------------------- loading


def test_everything_is_frozen_and_in_float32(make_config):
    model = load(make_config(SampleConfig))
    pipeline = model.pipeline
    with model.encoders.present():
        encoder = pipeline.text_encoder
    for part in (pipeline.unet, pipeline.vae, encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    assert model.device == torch.device("cpu")
    assert model.latent_shape == (4, 8, 8)


def test_half_precision_is_for_the_unet_not_for_the_decoder(make_config, predict):
    model = load(make_config(SampleConfig, precision="bf16"))
    assert model.pipeline.unet.dtype == torch.bfloat16
    assert model.pipeline.vae.dtype == torch.float32
    assert predict(model).dtype == torch.float32
    exact = predict(load(make_config(SampleConfig)))
    assert 0 < (predict(model) - exact).abs().max() < 0.1
    model.adapter.add(4, 0.0, ["to_q", "to_v"], seed=0)
    assert {parameter.dtype for parameter in model.adapter.parameters()} == {torch.float32}


def test_the_decoder_scales_and_clips(model):
    latents = 3 * torch.randn(9, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = model.decode(latents)
    with torch.no_grad():
        expected = model.pipeline.vae.decode(latents / 0.18215).sample
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_embeddings_are_those_of_the_pipeline(model):
    embeds = model.encode(["a green rabbit", "two cats"], "blurred")
    assert embeds.prompts.embeds.shape == (2, 16, 16)
    assert len(embeds) == 2
    with torch.no_grad():
        expected, negative = model.pipeline.encode_prompt("two cats", "cpu", 1, True, "blurred")
    torch.testing.assert_close(embeds[1:].prompts.embeds, expected)
    torch.testing.assert_close(embeds[1:].negative.embeds, negative)
    assert (expected - negative).abs().max() > 0.1


def without(folder, copy, change):
    shutil.copytree(folder, copy)
    change(copy)
    return copy


BROKEN = {
    "no index": lambda folder: (folder / "model_index.json").unlink(),
    "no UNet": lambda folder: shutil.rmtree(folder / "unet"),
    "no UNet weights": lambda folder: next((folder / "unet").glob("*.safetensors")).unlink(),
    "truncated UNet": lambda folder: truncate(next((folder / "unet").glob("*.safetensors"))),
    "truncated decoder": lambda folder: truncate(next((folder / "vae").glob("*.safetensors"))),
    "truncated text encoder": lambda folder: truncate(folder / "text_encoder/model.safetensors"),
    "no text encoder": lambda folder: shutil.rmtree(folder / "text_encoder"),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "no vocabulary": lambda folder: (folder / "tokenizer/tokenizer.json").unlink(),
    "config no JSON": lambda folder: (folder / "unet/config.json").write_text("{"),
    "weights of another shape": lambda folder: (folder / "unet/config.json").write_text(
        (folder / "unet/config.json").read_text().replace('"out_channels": 4', '"out_channels": 3')
    ),
    "another shape in the text encoder": lambda folder: (
        folder / "text_encoder/config.json"
    ).write_text(
        (folder / "text_encoder/config.json")
        .read_text()
        .replace('"intermediate_size": 32', '"intermediate_size": 48')
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_pipeline_is_refused(pipeline_folder, make_config, tmp_path, how):
    folder = without(pipeline_folder, tmp_path / "copy", BROKEN[how])
    message = refused(make_config(SampleConfig, model=str(folder)), None)
    assert str(folder) in message


def test_a_model_that_does_not_say_its_size_needs_one(pipeline_folder, make_config, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    settings = json.loads((folder / "unet/config.json").read_text())
    del settings["sample_size"]
    (folder / "unet/config.json").write_text(json.dumps(settings))
    said = "The model does not say its size: give --height and --width."
    assert refused(make_config(SampleConfig, model=str(folder), height=16), None) == said
    sized = make_config(SampleConfig, model=str(folder), height=16, width=24)
    assert load(sized).size == (16, 24)


def test_a_hub_id_without_network_is_refused(make_config):
    message = refused(make_config(SampleConfig, model="nobody/no-such-model"), None)
    assert message.startswith("Cannot load the model nobody/no-such-model: ")
    assert message.endswith("or a hub id that this machine has or can download.")


@pytest.mark.parametrize("device", ["cuda:77", "nonsense"])
def test_an_unknown_device_is_refused(make_config, device):
    assert f"--device '{device}': " in refused(make_config(SampleConfig, device=device), None)
