"""What each preset changes of the defaults, for each command that has it."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from dpok_cli.config import EvaluateConfig, SampleConfig, TrainSFTConfig, presets, resolve, to_toml
from dpok_cli.config.sources import COMMANDS, PRESETS
from dpok_cli.engine.rl.settings import TrainRLConfig

SAMPLING = {
    "model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
}
_IMAGE, _TEXT = ("to_q", "to_k", "to_v", "to_out.0"), ("add_q_proj", "add_k_proj", "add_v_proj")
JOINT = tuple(f"attn.{layer}" for layer in (*_IMAGE, *_TEXT, "to_add_out"))
RL = SAMPLING | {
    "rewards": ("image-reward",),
    "rounds": 2000,
    "samples_per_round": 10,
    "group_size": 1,
    "timestep_fraction": 1.0,
    "buffer_size": 1000,
    "updates_per_round": 5,
    "alpha": 10.0,
    "beta": 0.01,
    "ratio_clip": 1e-4,
    "advantage": "value",
    "advantage_clip": 0.0,
    "batch_size": 4,
    "gradient_accumulation": 12,
    "auto_batch_size": True,
    "learning_rate": 1e-5,
    "lr_schedule": "constant",
    "max_grad_norm": 0.1,
    "weight_decay": 0.01,
    "lora_rank": 4,
    "sample_batch_size": 10,
    "sample_every": 50,
    "checkpoint_every": 10,
}
SFT = SAMPLING | {
    "rewards": ("image-reward",),
    "images": 20_000,
    "steps": 8000,
    "gamma": 2.0,
    "prompt_dropout": 0.0,
    "batch_size": 16,
    "gradient_accumulation": 8,
    "learning_rate": 2e-5,
    "weight_decay": 0.01,
    "lora_rank": 4,
    "sample_batch_size": 10,
    "sample_every": 500,
    "checkpoint_every": 100,
}
#: Of each newer preset: what all its commands have, then what each training changes of it.
NEWER = {
    "sdxl": (
        {
            "model": "stabilityai/stable-diffusion-xl-base-1.0",
            "height": 1024,
            "width": 1024,
            "guidance_scale": 5.0,
            "sample_batch_size": 8,
            "precision": "bf16",
        },
        {
            "rounds": 100,
            "samples_per_round": 128,
            "group_size": 8,
            "advantage_clip": 10.0,
            "beta": 0.001,
            "batch_size": 4,
            "gradient_accumulation": 320,
            "learning_rate": 1e-4,
        },
        {"batch_size": 4, "gradient_accumulation": 32},
        {"lora_rank": 16},
        ("to_q", "to_k", "to_v", "to_out.0"),
    ),
    "sd35": (
        {
            "model": "stabilityai/stable-diffusion-3.5-medium",
            "height": 512,
            "width": 512,
            "num_inference_steps": 40,
            "guidance_scale": 4.5,
            "eta": 0.0,
            "sample_batch_size": 8,
            "precision": "bf16",
        },
        {
            "num_inference_steps": 10,
            "evaluation_steps": 40,
            "evaluation_eta": 0.0,
            "rounds": 500,
            "samples_per_round": 256,
            "group_size": 16,
            "beta": 0.0035,
            "kl": "gaussian",
            "batch_size": 8,
            "gradient_accumulation": 112,
            "learning_rate": 3e-4,
        },
        {"batch_size": 8, "gradient_accumulation": 16},
        {"lora_rank": 32, "lora_alpha": 64.0},
        JOINT,
    ),
    "flux": (
        {
            "model": "black-forest-labs/FLUX.1-dev",
            "height": 512,
            "width": 512,
            "num_inference_steps": 28,
            "guidance_scale": 3.5,
            "eta": 0.0,
            "sample_batch_size": 4,
            "precision": "bf16",
        },
        {
            "num_inference_steps": 6,
            "evaluation_steps": 28,
            "evaluation_eta": 0.0,
            "rounds": 300,
            "samples_per_round": 192,
            "group_size": 12,
            "beta": 0.0,
            "kl": "gaussian",
            "batch_size": 4,
            "gradient_accumulation": 96,
            "learning_rate": 3e-4,
        },
        {"batch_size": 4, "gradient_accumulation": 32, "prompt_dropout": 0.0},
        {"lora_rank": 64, "lora_alpha": 128.0},
        (*JOINT, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    ),
}
#: The policy gradient alone, as in the papers.
DPOK_ALONE = {
    "objective": "dpok",
    "noise_window": False,
    "kl_fraction": 1.0,
    "kl_target": 0.0,
    "adam_beta2": 0.999,
    "patience": 0,
}
NEWER_RL = DPOK_ALONE | {
    "max_grad_norm": 1.0,
    "updates_per_round": 2,
    "timestep_fraction": 1.0,
    "ratio_clip": 1e-4,
    "lr_schedule": "constant",
    "sample_every": 10,
    "checkpoint_every": 5,
}
NEWER_SFT = {
    "images": 2000,
    "steps": 800,
    "gamma": 2.0,
    "learning_rate": 2e-5,
    "sample_every": 100,
    "checkpoint_every": 20,
}
CHANGED = {
    (TrainRLConfig, "tiny"): {},
    (TrainRLConfig, "sd15"): RL | DPOK_ALONE,
    (TrainRLConfig, "sd15-multi"): RL | DPOK_ALONE | {"alpha": 1000.0, "beta": 0.1},
    (TrainSFTConfig, "tiny"): {},
    (TrainSFTConfig, "sd15"): SFT,
    (TrainSFTConfig, "sd15-sft"): SFT,
    (SampleConfig, "tiny"): {},
    (SampleConfig, "sd15"): SAMPLING,
    (EvaluateConfig, "tiny"): {},
    (EvaluateConfig, "sd15"): SAMPLING,
}
for preset, (shared, rl, sft, lora, targets) in NEWER.items():
    both = shared | lora | {"rewards": ("image-reward",), "gradient_checkpointing": True}
    CHANGED[TrainRLConfig, preset] = both | rl | NEWER_RL | {"lora_targets": targets}
    CHANGED[TrainSFTConfig, preset] = both | sft | NEWER_SFT
    CHANGED[SampleConfig, preset] = CHANGED[EvaluateConfig, preset] = shared
    if shared.get("eta") == 0:  # trained with the default's
        del CHANGED[TrainRLConfig, preset]["eta"]
KINDS = list(dict.fromkeys(kind for kind, _ in CHANGED))


@pytest.mark.parametrize(("kind", "preset"), CHANGED)
def test_what_a_preset_changes(kind, preset):
    config, default = vars(resolve(kind, preset)), vars(kind())
    assert {key: config[key] for key in config if config[key] != default[key]} == (
        CHANGED[kind, preset]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_presets_of_a_command(kind):
    assert {*presets(kind)} == {preset for of, preset in CHANGED if of is kind}
    assert presets(kind)[0] == "tiny"
    assert kind().model == "tiny"


def test_the_paper_keeps_what_the_defaults_share_with_it():
    config = resolve(TrainRLConfig, "sd15")
    shared = {"eta": 1.0, "kl": "epsilon", "clip_form": "ppo"}
    shared |= {"value_learning_rate": 1e-4, "value_updates": 5, "value_batch_size": 256}
    assert {key: getattr(config, key) for key in shared} == shared
    # so that it stays the paper's when a default is changed
    table = tomllib.loads((PRESETS / "sd15.toml").read_text())
    assert shared.items() <= (table | table["train-rl"]).items()
    assert resolve(TrainSFTConfig, "sd15").kl_form == table["train-sft"]["kl_form"] == "kl-d"


@pytest.mark.parametrize(("kind", "preset"), CHANGED)
def test_a_preset_is_written_and_read_again(kind, preset, tmp_path):
    config = resolve(kind, preset, prompts=['say "hi"', "Ünïcode \\ [x]"])
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert resolve(kind, file=file) == config
    assert resolve(kind, "sd15", file) == config  # it sets everything


@pytest.mark.parametrize(("kind", "preset"), [case for case in CHANGED if case[1] != "tiny"])
def test_a_presets_file_can_be_given_as_a_config(kind, preset):
    assert resolve(kind, file=PRESETS / f"{preset}.toml") == resolve(kind, preset)


def test_the_files_are_installed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["dpok_cli.config"]
    files = [file.relative_to(PRESETS.parent).as_posix() for file in PRESETS.iterdir()]
    assert len(files) >= 3
    assert [file for file in files if not any(fnmatch(file, each) for each in shipped)] == []


@pytest.mark.parametrize("preset", NEWER)
def test_a_preset_says_where_its_values_are_from_and_which_are_untried(preset):
    text = (PRESETS / f"{preset}.toml").read_text(encoding="utf-8")
    head, table = text.split("\n\n", 1)[0], tomllib.loads(text)
    assert "arXiv" in head
    assert "UNTRIED" in head
    assert "XueZeyue/DanceGRPO" in text or "DanceGRPO (issue 36)" in text  # of ImageReward alone
    # what the source has is written out, so that it stays when a default is changed
    written = table["train-rl"].keys()
    assert {"advantage", "clip_form", "kl", "beta", "alpha", "lora_targets"} <= written
    assert {"adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm"} <= written


@pytest.mark.parametrize("preset", NEWER)
def test_what_flow_models_draw_outside_of_training_has_no_noise(preset):
    """Samples, image sets, grids and evaluations are drawn alike."""
    trained = resolve(TrainRLConfig, preset).for_evaluation()
    drawn = resolve(SampleConfig, preset)
    for key in ("num_inference_steps", "eta", "guidance_scale", "height", "width", "precision"):
        assert getattr(trained, key) == getattr(drawn, key)
    assert resolve(TrainRLConfig, preset).eta == 1
    assert drawn.eta == (1 if preset == "sdxl" else 0)


def test_every_command_has_its_table():
    assert {kind.command for kind in KINDS} == {*COMMANDS}
