"""Adapters for other tools: their names, their scale, and the same images."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from dpok_cli import __version__
from dpok_cli.engine.lora.export import write
from dpok_cli.engine.lora.files import read_adapter
from dpok_cli.engine.lora.weights import Layer, count
from dpok_cli.errors import InputError
from engine.lora.conftest import equal, images
from support.pipelines import SD15_BLOCKS, make_pipeline

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"]


@pytest.fixture
def lora(structure, trained, text_lora):
    """A pipeline with an adapter of the UNet and the text encoder, and its weights."""
    model = trained(structure(), TARGETS + CONVOLUTIONS)
    model.adapter.install({"text_encoder": text_lora(model.pipeline)}, "it")
    return model, model.adapter.weights()


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_draws_the_same_images(lora, structure, tmp_path, form):
    model, weights = lora
    write(weights, form, tmp_path / "a.safetensors")
    pipeline = structure()
    before = images(pipeline)
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    parts = (pipeline.unet, pipeline.text_encoder)
    assert count(weights) == sum(
        ".lora_" in name for part in parts for name, _ in part.named_parameters()
    )
    with model.encoders.present(model.adapter.text):
        ours = images(model.pipeline)
    assert (images(pipeline) - ours).abs().max() <= 1 / 255
    assert (images(pipeline) - before).abs().max() > 0.01


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_what_is_written_is_read_as_it_was(lora, tmp_path, form):
    _, weights = lora
    write(weights, form, tmp_path / "a.safetensors")
    assert equal(read_adapter(tmp_path / "a.safetensors"), weights)


def test_peft_takes_its_form(structure, trained, tmp_path):
    model = trained(structure(), TARGETS)
    weights = model.adapter.weights()
    write(weights, "peft", tmp_path / "a", base="my/base")
    assert equal(read_adapter(tmp_path / "a"), weights)
    pipeline = structure()
    theirs = PeftModel.from_pretrained(pipeline.unet, tmp_path / "a")
    assert sum(".lora_" in name for name, _ in theirs.named_parameters()) == count(weights)
    assert (images(pipeline) - images(model.pipeline)).abs().max() <= 1 / 255
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 5.0)
    assert config["base_model_name_or_path"] == "my/base"


def test_pefts_form_does_not_hold_a_text_encoder_too(lora, tmp_path):
    _, weights = lora
    with pytest.raises(InputError, match="holds one network, and the adapter is of unet and text"):
        write(weights, "peft", tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ----------------------------------------------------------------------------------------- kohya


def kohya_names(pipeline, targets):
    """The names that kohya's network for these layers has: dots become underscores."""
    for network, prefix, layers in (
        (pipeline.unet, "lora_unet_", targets),
        (pipeline.text_encoder, "lora_te_text_model_", ("q_proj", "k_proj", "v_proj", "out_proj")),
        (pipeline.text_encoder, "lora_te_text_model_", ("fc1", "fc2")),
    ):
        for name, _ in network.named_modules():
            if name.endswith(tuple(f".{layer}" for layer in layers)):
                for end in ("lora_down.weight", "lora_up.weight", "alpha"):
                    yield f"{prefix}{name.replace('.', '_')}.{end}"


def test_the_names_are_those_of_kohyas_scripts(trained, text_lora, tmp_path):
    pipeline = make_pipeline(**SD15_BLOCKS)
    model = trained(pipeline, TARGETS, rank=4, alpha=2.0)
    model.adapter.install({"text_encoder": text_lora(pipeline)}, "it")
    write(model.adapter.weights(), "kohya", tmp_path / "mine.safetensors", base="my/base")
    names = load_file(tmp_path / "mine.safetensors").keys()
    layers = {name.partition(".")[0] for name in names}
    assert len([layer for layer in layers if layer.startswith("lora_unet_")]) == 192  # as SD v1's
    for layer in (
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_2",
        "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ):
        ends = {name.partition(".")[2] for name in names if name.startswith(f"{layer}.")}
        assert ends == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert names == set(kohya_names(pipeline, TARGETS))


def test_diffusers_converter_gives_the_same_names_both_ways(trained, tmp_path):
    model = trained(make_pipeline(**SD15_BLOCKS), TARGETS + CONVOLUTIONS)
    lora = model.adapter.weights()
    write(lora, "kohya", tmp_path / "a.safetensors")
    ours = load_file(tmp_path / "a.safetensors")
    by_peft_name = {
        f"unet.{name}.lora_{half}.weight": weight
        for name, layer in lora["unet"].items()
        for half, weight in (("A", layer.down), ("B", layer.up))
    }
    theirs = convert_state_dict_to_kohya(by_peft_name)  # whose alpha is always the rank
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[n], ours[n]) for n in ours if not n.endswith(".alpha"))
    back, alphas = StableDiffusionPipeline.lora_state_dict(dict(ours))
    assert len(back) == count(lora)
    assert set(alphas.values()) == {5.0}


def test_the_metadata_that_kohyas_tools_show(trained, tmp_path):
    write(
        trained(make_pipeline(), ["to_q", "to_k"], rank=4, alpha=2.0).adapter.weights(),
        "kohya",
        tmp_path / "rabbit.safetensors",
        base="my/base",
    )
    with safe_open(tmp_path / "rabbit.safetensors", "pt") as file:
        found = file.metadata()
    assert found == {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_output_name": "rabbit",
        "ss_sd_model_name": "my/base",
        "ss_training_comment": f"dpok {__version__}",
    }


@pytest.mark.parametrize(
    ("width", "version"), [(768, "sd_v1"), (1024, "sd_v2"), (2048, "sdxl_base_v1-0")]
)
def test_kohyas_name_of_the_base(tmp_path, width, version):
    layer = Layer(torch.ones(1, width), torch.ones(8, 1), 1.0)
    write({"unet": {"a.attn2.to_k": layer}}, "kohya", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["ss_base_model_version"] == version
        assert file.metadata()["ss_v2"] == str(version == "sd_v2")


def test_kohyas_form_of_other_families_is_refused(tmp_path):
    layer = Layer(torch.ones(1, 8), torch.ones(8, 1), 1.0)
    with pytest.raises(InputError, match="is for transformer; kohya's form is written for"):
        write({"transformer": {"a": layer}}, "kohya", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


# ----------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_precisions(lora, tmp_path, form, dtype):
    _, weights = lora
    write(weights, form, tmp_path / "a.safetensors", dtype=dtype)
    written = load_file(tmp_path / "a.safetensors").values()
    assert {weight.dtype for weight in written} == {dtype}
    for part, layers in read_adapter(tmp_path / "a.safetensors").items():
        for name, layer in layers.items():
            assert layer.alpha == weights[part][name].alpha
            assert torch.equal(layer.up, weights[part][name].up.to(dtype))


def test_weights_that_a_precision_cannot_hold_are_refused(tmp_path):
    lora = {"unet": {"a": Layer(torch.full((1, 2), 1e6), torch.ones(2, 1), 1.0)}}
    with pytest.raises(InputError, match=r"weights of a are too large for float16"):
        write(lora, "kohya", tmp_path / "a.safetensors", dtype=torch.float16)
    assert not (tmp_path / "a.safetensors").exists()
