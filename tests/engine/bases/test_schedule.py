"""Schedulers of released models: DDIM takes their noise and timesteps as diffusers does."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from dpok_cli.config import SampleConfig
from dpok_cli.engine.bases.load import load
from dpok_cli.engine.bases.schedule import ddim_arguments
from dpok_cli.engine.bases.source import loading_code
from dpok_cli.engine.lora.card import adapter_card
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.errors import InputError

NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
    "trained_betas": None,
}
V = {"prediction_type": "v_prediction"}
TRAILING = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
RELEASED = {
    "SD v1.5": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **NOISE},
    "SD v2 base": {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "epsilon",
        "skip_prk_steps": True,
        **NOISE,
    },
    "SD v2.1": {"_class_name": "DDIMScheduler", "skip_prk_steps": True, **V, **NOISE},
    "tiny-sd": {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "timestep_spacing": "linspace",
        "prediction_type": "epsilon",
        **NOISE,
    },
    "trailing": {"_class_name": "DDIMScheduler", **V, **TRAILING, **NOISE},
    "DDIM that does not say all": {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
    },
    "Euler that does not say all": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": "scaled_linear",
    },
}


@pytest.fixture
def with_scheduler(pipeline_folder, tmp_path):
    """Makes a pipeline folder with a scheduler_config.json."""

    def make(config):
        folder = tmp_path / "model"
        shutil.copytree(pipeline_folder, folder)
        (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", config["_class_name"]]
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    return make


@pytest.mark.parametrize("name", RELEASED)
def test_what_is_drawn_is_what_the_card_says(with_scheduler, make_config, name):
    folder = with_scheduler(RELEASED[name])
    config = make_config(model=str(folder), num_inference_steps=4, guidance_scale=3.0)
    model = load(config)
    arguments = ddim_arguments(model.pipeline.scheduler)
    kind = "StableDiffusionPipeline"
    card = adapter_card(
        config, 1, kind, loading_code(config, kind), arguments, model.base.call_arguments(3.0, "")
    )
    code = card.split("```python\n")[1].split("```")[0]
    without_adapter = [line for line in code.splitlines() if "load_lora_weights" not in line]
    names: dict = {}
    exec("\n".join(without_adapter), names)
    (ours,) = Sampler(model, config).sample(config.prompts[:1], [0])
    theirs = torch.tensor(list(names["image"].tobytes())).view(16, 16, 3).permute(2, 0, 1) / 255
    assert (ours.image - theirs).abs().max() <= 1.01 / 255
    assert bool(arguments) == name.endswith("not say all")


@pytest.mark.parametrize("name", [name for name in RELEASED if "not say" not in name])
def test_it_is_what_diffusers_makes_of_the_pipelines_own(with_scheduler, make_config, name):
    folder = with_scheduler(RELEASED[name])
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    theirs = DDIMScheduler.from_config(pipeline.scheduler.config)
    ours = load(make_config(SampleConfig, model=str(folder))).base.scheduler
    for steps in (3, 20, 50):
        for each in (ours, theirs):
            each.set_timesteps(steps)
        assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.config.prediction_type == theirs.config.prediction_type
    assert ours.config.clip_sample is False


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "has no betas"),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                **NOISE,
                "prediction_type": "flow_prediction",
            },
            "predicts 'flow_prediction'; only epsilon, v_prediction, sample can be used.",
        ),
        ({"_class_name": "DDIMScheduler", **NOISE, "thresholding": True}, "has thresholding"),
    ],
)
def test_a_schedule_that_is_not_ddims_is_refused(with_scheduler, make_config, config, said):
    with pytest.raises(InputError) as raised:
        load(make_config(SampleConfig, model=str(with_scheduler(config))))
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"The model's scheduler {config['_class_name']} ")


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"steps_offset": 1}, 999),
        ({"steps_offset": 0}, 1000),
        ({"steps_offset": 1, "timestep_spacing": "trailing"}, 1000),
        ({"steps_offset": 1, "timestep_spacing": "linspace"}, 1000),
    ],
)
def test_the_most_steps_that_a_schedule_gives(make_model, make_config, changes, most):
    model = make_model(**changes)
    for steps in (1000, 1001):
        if steps > most:
            with pytest.raises(InputError) as raised:
                Sampler(model, make_config(num_inference_steps=steps))
            assert str(raised.value) == (
                f"--num-inference-steps {steps}: this model has {most} at most."
            )
    assert len(Sampler(model, make_config(num_inference_steps=most)).denoising) == most


def test_noise_is_not_predicted_from_pure_noise(make_model, make_config):
    with pytest.raises(InputError, match=r"a step of pure noise \(zero terminal SNR\)"):
        Sampler(make_model(**TRAILING), make_config())
    Sampler(make_model(**TRAILING, **V), make_config())
