"""Pipelines of every family are loaded whole, or refused by what is missing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from dpok_cli.config import SampleConfig
from dpok_cli.engine.bases.families import FAMILIES
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.errors import InputError
from support.families import NEWER, guidance, make, make_sdxl
from support.ldm import checkpoint
from support.pipelines import make_pipeline

TWO_ENCODERS = ("sdxl", "sd35", "flux")


@pytest.fixture(params=NEWER)
def family(request):
    return request.param


def config(model, **changes):
    # A folder of FLUX.1 does not say which size it is of.
    small = dict(num_inference_steps=3, eta=0.0, guidance_scale=3.0, height=16, width=16)
    return SampleConfig(model=str(model), device="cpu", prompts=("cat",), **small | changes)


def image(settings):
    (sample,) = Sampler(load(settings), settings).sample(["cat"], [0])
    return sample.image


def refused(settings):
    with pytest.raises(InputError) as raised:
        load(settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def theirs(pipeline):
    generator = torch.Generator().manual_seed(0)
    given = dict(num_inference_steps=3, height=16, width=16) | guidance(pipeline, 3.0)
    return pipeline("cat", **given, generator=generator, output_type="pt").images[0]


def test_a_folder_draws_what_its_pipeline_draws(family, family_folder):
    ours = image(config(family_folder(family)))
    assert (ours - theirs(make(family))).abs().max() <= 1e-5
    assert (ours - theirs(make(family, seed=1))).abs().max() > 1e-3


def test_everything_is_frozen_and_half_precision_is_not_for_the_decoder(family, family_folder):
    model = load(config(family_folder(family), precision="bf16"))
    with model.encoders.present():
        encoders = model.base.encoders()
    assert encoders.keys() == {*model.base.family.encoders}
    for part in (model.base.network, model.pipeline.vae, *encoders.values()):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert model.base.dtype == torch.bfloat16
    assert model.pipeline.vae.dtype == torch.float32
    exact, rounded = (
        image(config(family_folder(family), precision=each)) for each in ("fp32", "bf16")
    )
    assert 0 < (exact - rounded).abs().max() < 0.1


def test_a_half_precision_folder_is_read(family, family_folder, tmp_path):
    make(family).save_pretrained(tmp_path / "half", variant="fp16")
    folder = tmp_path / "half"
    assert torch.equal(image(config(folder)), image(config(family_folder(family))))


@pytest.mark.parametrize("part", ["denoiser", "vae", "scheduler", "tokenizer", "text_encoder"])
def test_a_part_that_is_lost_is_missed(family, family_folder, tmp_path, part):
    """Of two text encoders it is the second."""
    if part == "text_encoder" and family in TWO_ENCODERS:
        part = "text_encoder_2"
    folder = tmp_path / "copy"
    shutil.copytree(family_folder(family), folder)
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    part = {"denoiser": FAMILIES[kind].denoiser}.get(part, part)
    shutil.rmtree(folder / part)
    assert refused(config(folder)) == f"Cannot load the model {folder}: it has no {part}."


@pytest.mark.parametrize("part", ["vae", "tokenizer", "text_encoder"])
def test_a_part_that_the_index_leaves_out_is_missed(family, family_folder, tmp_path, part):
    if part == "tokenizer" and family in TWO_ENCODERS:
        part = "tokenizer_2"
    folder = tmp_path / "copy"
    shutil.copytree(family_folder(family), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: [None, None]}))
    assert refused(config(folder)) == (
        f"Cannot load the model {folder}: its model_index.json is of a {index['_class_name']} and"
        f" lists no {part}."
    )


def test_an_index_of_another_class_is_refused_by_what_it_lacks(family_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(family_folder("sdxl"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    assert refused(config(folder)) == (
        f"Cannot load the model {folder}: its model_index.json is of a FluxPipeline and lists no"
        " transformer."
    )


def test_sd35_needs_no_t5(tmp_path):
    pipeline = make("sd35")
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    pipeline.save_pretrained(tmp_path / "folder")
    ours = image(config(tmp_path / "folder"))
    assert (ours - theirs(pipeline)).abs().max() <= 1e-5
    assert (ours - theirs(make("sd35"))).abs().max() > 1e-3


def test_a_tokenizer_of_another_encoder_is_refused(family, family_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(family_folder(family), folder)
    name = "tokenizer_2" if family in TWO_ENCODERS else "tokenizer"
    file = folder / name / "tokenizer.json"
    words = json.loads(file.read_text())
    if family == "flux":
        words["model"]["vocab"] = words["model"]["vocab"][:8]
    else:
        kept = list(words["model"]["vocab"].items())[:8]
        words["model"] |= {"vocab": dict(kept), "merges": []}
    file.write_text(json.dumps(words))
    assert f"its {name} has " in refused(config(folder))


def test_another_vae(family, family_folder, tmp_path):
    other = make(family, seed=1).vae
    other.save_pretrained(tmp_path / "vae")
    expected = make(family)
    expected.vae = other
    ours = image(config(family_folder(family), vae=str(tmp_path / "vae")))
    assert (ours - theirs(expected)).abs().max() <= 1e-5


def test_another_vae_is_read_in_place_of_one_that_is_lost(family_folder, tmp_path):
    make("sd35", seed=1).vae.save_pretrained(tmp_path / "vae")
    folder, vae = tmp_path / "copy", str(tmp_path / "vae")
    shutil.copytree(family_folder("sd35"), folder)
    expected = image(config(folder, vae=vae))
    shutil.rmtree(folder / "vae")
    assert torch.equal(image(config(folder, vae=vae)), expected)


def test_a_vae_of_another_family_is_refused(family_folder, pipeline_folder, tmp_path):
    settings = config(family_folder("flux"), vae=str(pipeline_folder))
    assert refused(settings) == "The model's VAE has no shift_factor, so it is not one of FLUX.1."
    settings = config(family_folder("sd35"), vae=str(tmp_path))
    assert "Give --vae an AutoencoderKL of Stable Diffusion 3 and 3.5, as" in refused(settings)


# ---------------------------------------------------------------------------------- single files


def test_a_file_of_sdxl_draws_what_its_pipeline_draws(tmp_path):
    make_sdxl().save_pretrained(tmp_path / "folder")
    file = tmp_path / "model.safetensors"
    save_file(checkpoint(make_sdxl()), file)
    ours = image(config(file, model_config=str(tmp_path / "folder")))
    assert (ours - theirs(make_sdxl())).abs().max() <= 1e-5


def test_a_file_needs_a_configuration_of_its_own_family(family_folder, pipeline_folder, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(checkpoint(make_sdxl()), file)
    assert "has the weights of a StableDiffusionXLPipeline." in refused(
        config(file, model_config=str(pipeline_folder))
    )
    save_file(checkpoint(make_pipeline()), file)
    assert "has the weights of a StableDiffusionPipeline." in refused(
        config(file, model_config=str(family_folder("sdxl")))
    )


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (
            {
                "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": 9216,
                "model.diffusion_model.pos_embed": (1, 36864, 1),
            },
            "stable-diffusion-3-medium-diffusers's (sd3)",
        ),
        ({"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": 4}, "(flux-"),
    ],
)
def test_files_of_flow_matching_families_are_refused(tmp_path, names, kind):
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, file)
    message = refused(config(file))
    assert kind in message
    assert message.endswith("are read from a pipeline's folder or a hub id.")
