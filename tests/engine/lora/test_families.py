"""Adapters of every family: the layers they are on, and the same images in diffusers."""

import re

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from dpok_cli.engine.bases.merge import write_merged
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.lora.export import write
from dpok_cli.engine.lora.files import ADAPTER_FILE, adapter_settings, read_adapter
from dpok_cli.engine.lora.ldm import ldm_name
from dpok_cli.engine.lora.weights import Layer, count
from dpok_cli.errors import InputError
from engine.lora.conftest import equal
from support.families import NEWER, guidance, make, make_sdxl
from support.ldm import unet_name

#: Of different kinds, some of which diffusers has old names for, and some not.
MIXED = {
    "sdxl": ["proj_in", "to_q", "to_out.0", "ff.net.2", "conv1", "time_emb_proj"],
    "sd35": [
        "attn.to_q",
        "attn.add_q_proj",
        "ff.net.2",
        "ff_context.net.2",
        "proj_out",
        "attn2.to_k",
    ],
    "flux": ["attn.to_q", "attn.add_q_proj", "ff.net.2", "proj_mlp", "x_embedder"],
    "qwen": ["attn.to_q", "attn.add_q_proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "img_in"],
    "zimage": ["attention.to_q", "attention.to_out.0", "feed_forward.w2", "cap_embedder.1"],
}


@pytest.fixture(params=NEWER)
def family(request):
    return request.param


@pytest.fixture
def trained(shake):
    """Makes a family's model with an adapter that matters, of alpha 5 and rank 3."""

    def trained(family, targets=()):
        model = DiffusionModel(make_sdxl() if family == "large sdxl" else make(family))
        model.adapter.add(3, 5.0, targets, seed=0)
        shake(model)
        return model

    return trained


@pytest.fixture
def text_lora():
    """Random LoRA weights for each linear layer of a CLIP encoder."""

    def text_lora(encoder):
        generator = torch.Generator().manual_seed(1)
        wrapped = hasattr(encoder, "text_model")
        return {
            name if wrapped else f"text_model.{name}": Layer(
                0.5 * torch.randn(2, module.in_features, generator=generator),
                0.5 * torch.randn(module.out_features, 2, generator=generator),
                4.0,
            )
            for name, module in encoder.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "text_projection"
        }

    return text_lora


def image(pipeline):
    generator = torch.Generator().manual_seed(0)
    given = dict(num_inference_steps=3, height=16, width=16) | guidance(pipeline, 3.0)
    return pipeline("cat", **given, generator=generator, output_type="pt").images[0]


def weights_in(pipeline):
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(".lora_" in name for part in parts for name, _ in part.named_parameters())


def test_the_default_layers_are_all_of_attention(family):
    model = DiffusionModel(make(family))
    model.adapter.add(2, 0.0, (), seed=0)
    layers = model.adapter.weights()[model.base.family.denoiser]
    expected = {
        name
        for name, module in DiffusionModel(make(family)).base.network.named_modules()
        if isinstance(module, torch.nn.Linear)
        and re.search(r"\.(attn[12]?|attention)\.", name)
        and not (family == "sd35" and ".attn2." in name)  # of its first blocks only
    }
    assert layers.keys() == expected
    assert len(expected) == {"sdxl": 64, "sd35": 15, "flux": 11, "qwen": 16, "zimage": 16}[family]


def test_a_layer_that_the_denoiser_has_not_is_refused(family):
    model = DiffusionModel(make(family))
    with pytest.raises(InputError, match=r"^--lora-targets 'to_z': the denoiser has no such layer"):
        model.adapter.add(2, 0.0, ["to_q", "to_z"], seed=0)


@pytest.mark.parametrize("targets", ["default", "mixed"])
def test_diffusers_draws_the_same_images(trained, family, targets, tmp_path):
    model = trained(family, MIXED[family] if targets == "mixed" else ())
    model.adapter.save(tmp_path)
    lora = model.adapter.weights()
    assert {name.partition(".")[0] for name in load_file(tmp_path / ADAPTER_FILE)} == {
        model.base.family.denoiser
    }
    assert equal(read_adapter(tmp_path), lora)
    pipeline = make(family)
    before = image(pipeline)
    pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    assert weights_in(pipeline) == count(lora)
    assert (image(pipeline) - image(model.pipeline)).abs().max() <= 1e-5
    assert (image(pipeline) - before).abs().max() > 0.01


def test_it_is_loaded_with_its_rank_alpha_and_layers(trained, family, tmp_path):
    model = trained(family, MIXED[family])
    model.adapter.save(tmp_path)
    settings = adapter_settings(tmp_path, "--init-adapter")
    assert (settings["lora_rank"], settings["lora_alpha"]) == (3, 5.0)
    again = DiffusionModel(make(family))
    again.adapter.install(read_adapter(tmp_path), "it")
    assert equal(again.adapter.weights(), model.adapter.weights())
    assert torch.equal(image(again.pipeline), image(model.pipeline))


def test_an_adapter_of_another_family_is_refused(trained, family, tmp_path):
    others = [other for other in NEWER if other != family]
    for other in others:
        model = trained(other)
        model.adapter.save(tmp_path / other)
        with pytest.raises(InputError, match="does not fit this model"):
            DiffusionModel(make(family)).adapter.install(read_adapter(tmp_path / other), "it")


def test_peft_takes_its_form(trained, family, tmp_path):
    from peft import PeftModel

    model = trained(family, MIXED[family])
    lora = model.adapter.weights()
    write(lora, "peft", tmp_path / "a")
    assert equal(read_adapter(tmp_path / "a"), lora)
    base = DiffusionModel(make(family)).base
    theirs = PeftModel.from_pretrained(base.network, tmp_path / "a")
    assert sum(".lora_" in name for name, _ in theirs.named_parameters()) == count(lora)
    assert (image(base.pipeline) - image(model.pipeline)).abs().max() <= 1e-5


def test_a_merged_pipeline_draws_the_same_images(trained, family, tmp_path):
    model = trained(family, MIXED[family])
    expected = image(model.pipeline)
    write_merged(model, tmp_path / "merged")
    pipeline = type(model.pipeline).from_pretrained(tmp_path / "merged")
    assert weights_in(pipeline) == 0
    assert (image(pipeline) - expected).abs().max() <= 1e-4
    assert (image(make(family)) - expected).abs().max() > 0.01


# ------------------------------------------------------------------------------------------ SDXL


@pytest.fixture
def xl(trained, text_lora):
    """A model of SDXL's structure with an adapter of its UNet and both text encoders."""
    model = trained("large sdxl", [*MIXED["sdxl"], "to_k", "conv2", "conv_shortcut", "conv"])
    for name in ("text_encoder", "text_encoder_2"):
        model.adapter.install({name: text_lora(getattr(model.pipeline, name))}, "it")
    return model


def test_the_names_of_all_layers_are_those_of_the_first_release():
    unet = make_sdxl().unet
    names = [name for name in unet.state_dict() if name.endswith(".weight")]
    assert len(names) > 100
    for name in names:
        if "norm" not in name:
            assert f"{ldm_name(name.removesuffix('.weight'))}.weight" == unet_name(name, unet)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_text_encoders_of_sdxl_go_with_it(xl, form, tmp_path):
    lora = xl.adapter.weights()
    assert lora.keys() == {"unet", "text_encoder", "text_encoder_2"}
    write(lora, form, tmp_path / "a.safetensors")
    assert equal(read_adapter(tmp_path / "a.safetensors"), lora)
    pipeline = make_sdxl()
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    assert weights_in(pipeline) == count(lora)
    with xl.encoders.present(xl.adapter.text):
        ours = image(xl.pipeline)
    assert (image(pipeline) - ours).abs().max() <= 1e-5


def test_each_text_encoder_of_sdxl_matters(xl):
    lora = xl.adapter.weights()
    with xl.encoders.present(xl.adapter.text):
        ours = image(xl.pipeline)
    for name in ("text_encoder", "text_encoder_2"):
        model = DiffusionModel(make_sdxl())
        model.adapter.install({part: lora[part] for part in lora if part != name}, "it")
        with model.encoders.present(model.adapter.text):
            assert (image(model.pipeline) - ours).abs().max() > 1e-3


def test_kohyas_names_are_those_that_its_scripts_and_comfyui_have(xl, tmp_path):
    lora = xl.adapter.weights()
    write(lora, "kohya", tmp_path / "a.safetensors")
    weights = load_file(tmp_path / "a.safetensors")
    layers = {name.partition(".")[0] for name in weights}
    assert len(weights) == 3 * len(layers) == count(lora) // 2 * 3
    for layer in (
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_2_attn2_to_out_0",
        "lora_unet_middle_block_1_transformer_blocks_0_ff_net_2",
        "lora_unet_output_blocks_5_1_transformer_blocks_0_attn2_to_k",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_middle_block_2_emb_layers_1",
        "lora_unet_output_blocks_0_0_skip_connection",
        "lora_unet_output_blocks_2_2_conv",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
    ):
        assert layer in layers
    converted, alphas = StableDiffusionXLPipeline.lora_state_dict(
        dict(weights), unet_config=make_sdxl().unet.config
    )
    assert len(converted) == count(lora)
    assert set(alphas.values()) == {5.0, 4.0}


def test_an_adapter_of_sdxl_is_known_by_its_layers(trained, tmp_path):
    from safetensors import safe_open

    write(trained("sdxl", ["to_q"]).adapter.weights(), "kohya", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
        assert file.metadata()["ss_v2"] == "False"


# ---------------------------------------------------------------------------------- flow matching


@pytest.mark.parametrize("family", [each for each in NEWER if each != "sdxl"])
def test_kohyas_form_is_not_written_for_flow_matching(trained, family, tmp_path):
    lora = trained(family).adapter.weights()
    with pytest.raises(InputError) as caught:
        write(lora, "kohya", tmp_path / "a.safetensors")
    assert str(caught.value) == (
        "The adapter is for transformer; kohya's form is written for Stable Diffusion v1, v2 and XL"
        " only: give --format diffusers, which ComfyUI reads as well."
    )
    assert not (tmp_path / "a.safetensors").exists()


def test_kohyas_adapters_of_flux_are_read(tmp_path):
    """It has one matrix for q, k and v; diffusers multiplies by alpha / rank."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(96, 2, generator=generator)
    layer = "lora_unet_double_blocks_0_img_attn_qkv"
    weights = {
        f"{layer}.lora_down.weight": down,
        f"{layer}.lora_up.weight": up,
        f"{layer}.alpha": torch.tensor(1.0),
    }
    file = tmp_path / "a.safetensors"
    save_file(weights, file)
    lora = read_adapter(file)
    names = [f"transformer_blocks.0.attn.to_{each}" for each in "qkv"]
    assert list(lora["transformer"]) == names
    for name, each in zip(names, up.chunk(3), strict=True):
        found = lora["transformer"][name]
        assert found.alpha == found.rank == 2
        torch.testing.assert_close(found.up @ found.down, each @ down / 2)
    model = DiffusionModel(make("flux"))
    model.adapter.install(lora, "it")
    assert (image(model.pipeline) - image(make("flux"))).abs().max() > 1e-3
    save_file(weights | {"lora_unet_triple_blocks.lora_down.weight": down.clone()}, file)
    with pytest.raises(InputError, match="has weights that are not known: "):
        read_adapter(file)
