"""The adapter and the reference, and images equal to those of diffusers."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from dpok_cli.config import SampleConfig
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.lora.files import ADAPTER_FILE
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.errors import InputError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def draw(model, config, seeds=(3, 14)):
    return torch.stack([one.image for one in Sampler(model, config).sample(config.prompts, seeds)])


def draw_with_diffusers(pipeline, config, seeds=(3, 14)):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        [prompt for prompt in config.prompts for _ in seeds],
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        eta=config.eta,
        generator=[torch.Generator().manual_seed(seed) for _ in config.prompts for seed in seeds],
        output_type="pt",
    ).images


# ------------------------------------------------------------------------- equal to diffusers' own


@pytest.mark.parametrize(
    ("rank", "alpha", "guidance_scale", "eta"),
    [(4, 0.0, 3.0, 1.0), (4, 16.0, 3.0, 1.0), (2, 1.0, 1.0, 0.5), (2, 3.0, 5.0, 0.0)],
)
def test_the_saved_adapter_draws_the_same_images_in_diffusers(
    pipeline_folder, make_config, make_adapter, rank, alpha, guidance_scale, eta
):
    config = make_config(SampleConfig, guidance_scale=guidance_scale, eta=eta)
    trained, adapter = make_adapter(rank, alpha)
    ours = draw(trained, config)
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    before = draw_with_diffusers(pipeline, config)
    pipeline.load_lora_weights(adapter)
    theirs = draw_with_diffusers(pipeline, config)
    assert (ours - before).abs().max() > 0.02  # the adapter matters
    assert (ours - theirs).abs().max() <= 1 / 255
    loaded = draw(load(config, adapter), config)
    assert (ours - loaded).abs().max() <= 1e-5


def test_the_base_draws_the_same_images_in_diffusers(pipeline_folder, make_config):
    config = make_config(SampleConfig, guidance_scale=3.0)
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    theirs = draw_with_diffusers(pipeline, config)
    assert (draw(load(config), config) - theirs).abs().max() <= 1 / 255


def test_another_scheduler_is_swapped_for_ddim_without_clipping(build, make_config, tmp_path):
    """Stable Diffusion v1.5 comes with PNDM; DDIM would clip x_0 unless told not to."""
    noise = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    build(PNDMScheduler(**noise, skip_prk_steps=True, steps_offset=1)).save_pretrained(tmp_path)
    config = make_config(SampleConfig, model=str(tmp_path))
    model = load(config)
    assert isinstance(model.base.scheduler, DDIMScheduler)
    assert model.base.scheduler.config.clip_sample is False
    assert model.base.scheduler.config.beta_end == 0.012
    assert model.base.scheduler.config.steps_offset == 1
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    theirs = draw_with_diffusers(pipeline, config)
    assert (draw(model, config) - theirs).abs().max() <= 1 / 255


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_other_prediction_types_draw_the_same_images_in_diffusers(
    build, make_config, tmp_path, prediction_type
):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    build(scheduler).save_pretrained(tmp_path)
    config = make_config(SampleConfig, model=str(tmp_path), guidance_scale=3.0)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    theirs = draw_with_diffusers(pipeline, config)
    assert (draw(load(config), config) - theirs).abs().max() <= 1 / 255


def test_a_pipeline_made_in_memory_is_drawn_from_as_it_is(build, make_config):
    """Its scheduler was not told everything: what was left out has defaults, and diffusers changes
    two of them in place (no clipping, an offset of 1)."""
    pipeline = build(DDIMScheduler(beta_schedule="scaled_linear", set_alpha_to_one=False))
    config = make_config(SampleConfig)
    theirs = draw_with_diffusers(pipeline, config)
    assert (draw(DiffusionModel(pipeline), config) - theirs).abs().max() <= 1 / 255


# ------------------------------------------------------------------------------------- the adapter


def test_a_new_adapter_changes_nothing(model, predict):
    before = predict(model)
    model.adapter.add(4, 0.0, TARGETS, seed=0)
    torch.testing.assert_close(predict(model), before, rtol=0, atol=0)


def test_only_the_adapter_is_trained(model):
    assert model.adapter.parameters() == []
    model.adapter.add(3, 0.0, ["to_q"], seed=0)
    parameters = model.adapter.parameters()
    # two attention layers in each of down, middle and up: A (3, in) and B (out, 3) of to_q
    assert {tuple(parameter.shape) for parameter in parameters if parameter.shape[0] == 3} == {
        (3, 8),
        (3, 16),
    }
    wanted = {
        id(parameter) for parameter in model.pipeline.unet.parameters() if parameter.requires_grad
    }
    assert wanted == {id(parameter) for parameter in parameters}
    for part in (model.pipeline.vae, model.pipeline.text_encoder):
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_the_adapter_is_drawn_from_its_seed_and_from_nothing_else(make_model):
    def weights(seed):
        model = make_model()
        torch.rand(100)
        state = torch.get_rng_state()
        model.adapter.add(4, 0.0, TARGETS, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([parameter.flatten() for parameter in model.adapter.parameters()])

    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_lora_alpha_over_rank_is_the_scale(make_model, predict):
    def output(alpha, size):
        model = make_model()
        model.adapter.add(4, alpha, TARGETS, seed=0)
        for name, parameter in model.pipeline.unet.named_parameters():
            if ".lora_B." in name:
                parameter.data.fill_(size)
        return predict(model)

    usual = output(0.0, 0.02)
    torch.testing.assert_close(output(4.0, 0.02), usual, rtol=0, atol=0)
    torch.testing.assert_close(output(8.0, 0.01), usual)
    assert (output(8.0, 0.02) - usual).abs().max() > 1e-3


def test_the_reference_is_the_model_before_the_adapter(model, shake, predict):
    before = predict(model)
    model.adapter.add(4, 0.0, TARGETS, seed=0)
    shake(model)
    after = predict(model)
    with model.reference():
        torch.testing.assert_close(predict(model), before, rtol=0, atol=0)
    torch.testing.assert_close(predict(model), after, rtol=0, atol=0)
    assert (after - before).abs().max() > 1e-2
    assert all(parameter.requires_grad for parameter in model.adapter.parameters())


def test_the_adapter_is_back_also_after_an_error(model, shake, predict):
    model.adapter.add(4, 0.0, TARGETS, seed=0)
    shake(model)
    after = predict(model)
    with pytest.raises(KeyError), model.reference():
        raise KeyError
    torch.testing.assert_close(predict(model), after, rtol=0, atol=0)


def test_unknown_targets_are_refused(model):
    with pytest.raises(InputError, match="'to_z': the denoiser has no such layer"):
        model.adapter.add(4, 0.0, ["to_z", "to_y"], seed=0)


def test_one_unknown_target_among_known_ones_is_refused(model):
    with pytest.raises(InputError, match="to_z"):
        model.adapter.add(4, 0.0, ["to_q", "to_z"], seed=0)


def test_what_an_adapter_file_holds(make_adapter):
    _, adapter = make_adapter(rank=2, alpha=6.0, targets=["to_v", "to_q"])
    assert [file.name for file in adapter.iterdir()] == [ADAPTER_FILE]
    weights = load_file(adapter / ADAPTER_FILE)
    assert all(key.startswith("unet.") and ".lora" in key for key in weights)
    assert {min(weight.shape) for weight in weights.values()} == {2}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    with safe_open(adapter / ADAPTER_FILE, "pt") as file:
        (metadata,) = (json.loads(text) for key, text in file.metadata().items() if "lora" in key)
    assert metadata["unet.r"] == 2
    assert metadata["unet.lora_alpha"] == 6.0
    assert metadata["unet.target_modules"] == ["to_q", "to_v"]


def test_a_loaded_adapter_is_saved_as_it_was(make_adapter, make_config, tmp_path):
    _, adapter = make_adapter(rank=2, alpha=6.0)
    load(make_config(SampleConfig), adapter).adapter.save(tmp_path / "again")
    first, again = (load_file(place / ADAPTER_FILE) for place in (adapter, tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_an_adapter_is_named_by_folder_or_by_file(make_adapter, make_config):
    trained, adapter = make_adapter()
    config = make_config(SampleConfig, prompts=("two cats",))
    shutil.move(adapter / ADAPTER_FILE, adapter / "mine.safetensors")
    by_file = draw(load(config, adapter / "mine.safetensors"), config)
    assert (by_file - draw(trained, config)).abs().max() <= 1e-5
