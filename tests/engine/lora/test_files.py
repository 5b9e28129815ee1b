"""Adapters are read in every form that tools write, whole or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.lora.export import write
from dpok_cli.engine.lora.files import ADAPTER_FILE, PEFT_FILE, read_adapter
from dpok_cli.engine.lora.weights import Layer, count
from dpok_cli.errors import InputError
from engine.lora.conftest import equal, images

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TARGETS = {
    "attention": ATTENTION,
    "projections and attention": ["proj_in", "proj_out", "to_q"],
    "feed-forward": ["ff.net.0.proj", "ff.net.2"],
    "convolutions": ["conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out"],
    "everything": [*ATTENTION, "proj_in", "ff.net.2", "conv1", "time_emb_proj", "linear_1"],
}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_diffusers_takes_every_weight_that_is_saved(structure, trained, tmp_path, targets):
    model = trained(structure(), targets)
    model.adapter.save(tmp_path)
    saved = load_file(tmp_path / ADAPTER_FILE)
    assert len(saved) == len(model.adapter.parameters()) == count(model.adapter.weights()) > 0
    pipeline = structure()
    before = images(pipeline)
    pipeline.load_lora_weights(tmp_path)
    taken = [name for name, _ in pipeline.unet.named_parameters() if ".lora_" in name]
    assert len(taken) == len(saved)
    theirs, ours = images(pipeline), images(model.pipeline)
    assert (ours - theirs).abs().max() <= 1 / 255
    assert (ours - before).abs().max() > 0.01
    assert equal(read_adapter(tmp_path), model.adapter.weights())


def test_mixed_targets_keep_all_their_weights(structure, trained, tmp_path):
    """diffusers' own conversion names some of these in another way, and its loader drops them."""
    model = trained(structure(), ["proj_in", "to_q"])
    model.adapter.save(tmp_path)
    names = load_file(tmp_path / ADAPTER_FILE)
    pipeline = structure()
    pipeline.load_lora_weights(tmp_path)
    taken = sum(".lora_" in name for name, _ in pipeline.unet.named_parameters())
    transformers = sum(name.endswith("proj_in") for name, _ in pipeline.unet.named_modules())
    assert taken == len(names) == 6 * transformers
    again = DiffusionModel(structure())
    again.adapter.install(read_adapter(tmp_path), "it")
    assert equal(again.adapter.weights(), model.adapter.weights())


# ----------------------------------------------------------------------------------------- forms

ROUND = dict(rank=4, alpha=6.0)


def renamed(lora, change):
    """Weights by names: ``change(name)`` of peft's names with "unet." or "text_encoder."."""
    return {
        change(f"{part}.{name}.lora_{half}.weight"): weight.contiguous()
        for part, layers in lora.items()
        for name, layer in layers.items()
        for half, weight in (("A", layer.down), ("B", layer.up))
    }


def attn_procs(name):
    for layer in ("to_q", "to_k", "to_v"):
        name = name.replace(f".{layer}.lora_A", f".processor.{layer}_lora.down")
        name = name.replace(f".{layer}.lora_B", f".processor.{layer}_lora.up")
    name = name.replace(".to_out.0.lora_A", ".processor.to_out_lora.down")
    return name.replace(".to_out.0.lora_B", ".processor.to_out_lora.up")


def mixed(name):
    """As dpok wrote adapters at first: the attention in diffusers' names, the rest in peft's."""
    if ".to_" not in name:
        return name
    return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


FORMS = {
    "peft's names": lambda name: name,
    "diffusers' names": lambda name: name.replace("lora_A", "lora.down").replace(
        "lora_B", "lora.up"
    ),
    "attention processors": attn_procs,
    "attention processors without a prefix": lambda name: attn_procs(name).removeprefix("unet."),
    "without a prefix": lambda name: name.removeprefix("unet."),
    "peft's own": lambda name: name.replace("unet.", "base_model.model."),
    "an adapter's name in it": lambda name: name.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_names_of_other_tools(structure, trained, tmp_path, form):
    lora = trained(structure(), ATTENTION, rank=4, alpha=4.0).adapter.weights()
    file = tmp_path / "a.safetensors"
    save_file(renamed(lora, FORMS[form]), file)
    assert equal(read_adapter(file), lora)


def test_an_adapter_in_the_names_of_older_versions(structure, trained, tmp_path):
    lora = trained(structure(), ["to_q", "proj_in"], **ROUND).adapter.weights()
    notes = {"unet.r": 4, "unet.lora_alpha": 6.0, "unet.target_modules": ["proj_in", "to_q"]}
    weights = renamed(lora, mixed)
    assert {name.split(".lora")[1][:2] for name in weights} == {"_A", "_B", ".d", ".u"}
    save_file(weights, tmp_path / ADAPTER_FILE, {"lora_adapter_metadata": json.dumps(notes)})
    assert equal(read_adapter(tmp_path), lora)


TEXT_FORMS = {
    "peft's names": lambda name: name,
    "diffusers' names": lambda name: name.replace("lora_A", "lora_linear_layer.down").replace(
        "lora_B", "lora_linear_layer.up"
    ),
    "without text_model": lambda name: name.replace("text_model.", ""),
    "older names": lambda name: (
        name.replace("_proj.lora_A", "_lora.down")
        .replace("_proj.lora_B", "_lora.up")
        .replace("attn.", "attn.to_")
        if "attn" in name
        else name.replace("lora_A", "lora_linear_layer.down").replace(
            "lora_B", "lora_linear_layer.up"
        )
    ),
}


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_the_names_of_a_text_encoder(structure, text_lora, tmp_path, form):
    lora = {"text_encoder": text_lora(structure(), alpha=2)}
    save_file(renamed(lora, TEXT_FORMS[form]), tmp_path / "a.safetensors")
    assert equal(read_adapter(tmp_path / "a.safetensors"), lora)


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft"])
def test_ranks_and_alphas_of_each_layer(structure, trained, tmp_path, form):
    lora = trained(structure(), ["to_q", "proj_in", "conv1"], **ROUND).adapter.weights()
    for number, (name, layer) in enumerate(list(lora["unet"].items())[:5], 1):
        lora["unet"][name] = Layer(layer.down[:number], layer.up[:, :number], 2.0 * number)
    write(lora, form, tmp_path / "a.safetensors")
    if form == "peft":
        (tmp_path / "a.safetensors").rename(tmp_path / "a")
    place = tmp_path / ("a" if form == "peft" else "a.safetensors")
    read = read_adapter(place)
    assert equal(read, lora)
    model = DiffusionModel(structure())
    model.adapter.install(read, "it")
    assert equal(model.adapter.weights(), lora)
    if form == "diffusers":  # which misses kohya's alphas of attention layers that differ
        pipeline = structure()
        pipeline.load_lora_weights(tmp_path, weight_name=place.name)
        assert (images(pipeline) - images(model.pipeline)).abs().max() <= 1 / 255


def test_a_rank_stabilised_adapter_has_its_own_scale(structure, trained, tmp_path):
    model = trained(structure(), ["to_q"], **ROUND)
    write(model.adapter.weights(), "peft", tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    alphas = {layer.alpha for layer in read_adapter(tmp_path / "a")["unet"].values()}
    assert alphas == {6.0 * 4**0.5}


def test_the_file_of_a_folder(tmp_path):
    weights = {"unet.a.lora_A.weight": torch.ones(1, 2), "unet.a.lora_B.weight": torch.ones(2, 1)}
    save_file(weights, tmp_path / "mine.safetensors")
    assert count(read_adapter(tmp_path)) == 2
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=f"There is no adapter .*{ADAPTER_FILE}"):
        read_adapter(tmp_path)
    save_file(weights, tmp_path / PEFT_FILE)
    assert count(read_adapter(tmp_path)) == 2


# --------------------------------------------------------------------------------------- refused


def refused(weights, tmp_path, **config):
    file = tmp_path / PEFT_FILE
    save_file(weights, file)
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as raised:
        read_adapter(file, "--init-adapter")
    message = str(raised.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert len(message) < 500
    return message


PAIR = {
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(1, 8),
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(8, 1),
    "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0),
}
LAYER = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{LAYER}.dora_scale", "DoRA"),
        ("unet.a.lora_magnitude_vector", "DoRA"),
        (f"{LAYER}.hada_w1_a", "LoHa"),
        (f"{LAYER}.lokr_w1", "LoKr"),
        (f"{LAYER}.lora_mid.weight", "LoCon with a Tucker decomposition"),
        (f"{LAYER}.oft_blocks", "OFT"),
        (f"{LAYER}.on_input", "IA3"),
        (f"{LAYER}.diff", "a full difference of weights"),
        ("bundle_emb.word.string_to_param.*", "LoRA with textual inversion"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_its_kind(tmp_path, name, kind):
    message = refused(PAIR | {name: torch.ones(8)}, tmp_path)
    assert f" is {kind}, which is not supported. Give --init-adapter a plain LoRA." in message


@pytest.mark.parametrize(
    ("config", "kind"), [({"peft_type": "LOHA"}, "LOHA"), ({"use_dora": True}, "DoRA")]
)
def test_other_kinds_by_pefts_config(tmp_path, config, kind):
    assert f" is {kind}, which" in refused(PAIR, tmp_path, **config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    (name, *_) = PAIR
    message = refused(PAIR | {name: torch.full((1, 8), value)}, tmp_path)
    assert f"has weights that are NaN or infinite, such as {name}." in message


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"lora_unet_else.weight": torch.ones(1)}, "lora_unet_else.weight"),
        ({"other.weight": torch.ones(1)}, "weight"),
        ({"lora_unet_else.alpha": torch.tensor(1.0)}, "lora_unet_else.alpha"),
        (
            {"lora_unet_else.lora_down.weight": torch.ones(1, 1)},
            "lora_unet_else.lora_up.weight is missing",
        ),
    ],
)
def test_nothing_of_a_file_is_dropped(tmp_path, extra, named):
    message = refused(PAIR | extra, tmp_path)
    assert "has weights that are not known: " in message
    assert named in message


def test_half_a_layer_is_refused(tmp_path):
    message = refused({"unet.a.lora_A.weight": torch.ones(1, 2)}, tmp_path)
    assert "a, which has one of its two halves" in message


def test_a_layer_that_is_there_twice_is_refused(tmp_path):
    weights = {
        "unet.a.to_q.lora_A.weight": torch.ones(1, 2),
        "unet.a.to_q.lora.down.weight": torch.zeros(1, 2),
        "unet.a.to_q.lora_B.weight": torch.ones(2, 1),
    }
    assert "a second time in another form" in refused(weights, tmp_path)


def test_an_adapter_for_what_the_model_has_not_is_refused(structure):
    adapter = DiffusionModel(structure()).adapter
    layer = Layer(torch.ones(1, 8), torch.ones(8, 1), 1.0)
    for lora, said in (
        ({"text_encoder_2": {"a": layer}}, "does not fit this model, which has no text_encoder_2."),
        ({"unet": {"a.b": layer}}, "it has weights for unet.a.b, which the model has not."),
        ({"unet": {"conv_in": layer}}, "its weights for unet.conv_in have other shapes."),
        ({"unet": {"mid_block": layer}}, "weights for unet.mid_block, which the model has not."),
    ):
        with pytest.raises(InputError) as raised:
            adapter.install(lora, "my.safetensors")
        assert said in str(raised.value)
        assert str(raised.value).startswith("The adapter my.safetensors does not fit this model")
        assert not adapter
