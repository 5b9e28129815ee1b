"""Settings: presets, precedence, ranges, and TOML there and back."""

from dataclasses import FrozenInstanceError, fields

import pytest

from dpok_cli.config import (
    PRESETS,
    SampleConfig,
    TrainRLConfig,
    TrainSFTConfig,
    resolve,
    to_toml,
)
from dpok_cli.errors import InputError


def write(folder, text):
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_sd15_is_the_papers_run():
    config = resolve(TrainRLConfig, "sd15")
    paper = {
        "num_inference_steps": 50,
        "eta": 1.0,
        "guidance_scale": 7.5,
        "samples_per_round": 10,
        "group_size": 1,
        "updates_per_round": 5,
        "alpha": 10.0,
        "beta": 0.01,
        "kl": "epsilon",
        "ratio_clip": 1e-4,
        "max_grad_norm": 0.1,
        "learning_rate": 1e-5,
        "lr_schedule": "constant",
        "lora_rank": 4,
        "advantage": "value",
        "value_learning_rate": 1e-4,
        "value_updates": 5,
        "value_batch_size": 256,
        "buffer_size": 1000,
        "rewards": ("image-reward",),
    }
    assert {key: getattr(config, key) for key in paper} == paper
    assert config.rounds * config.samples_per_round == 20_000
    assert config.batch_size * config.gradient_accumulation == 4 * 12


def test_sd15_multi_differs_in_the_weights_only():
    one, many = resolve(TrainRLConfig, "sd15"), resolve(TrainRLConfig, "sd15-multi")
    changed = {f.name for f in fields(one) if getattr(one, f.name) != getattr(many, f.name)}
    assert changed == {"alpha", "beta"}
    assert (many.alpha, many.beta) == (1000.0, 0.1)


@pytest.mark.parametrize("kind", PRESETS)
def test_the_tiny_preset_is_the_defaults(kind):
    assert resolve(kind) == kind()
    assert kind().model == "tiny"


def test_flags_are_over_the_file_and_the_file_is_over_the_preset(tmp_path):
    file = write(tmp_path, "rounds = 7\nalpha = 3\nprompts = ['a cat']\n")
    config = resolve(TrainRLConfig, "sd15", file, rounds=9, beta=None)
    assert (config.rounds, config.alpha, config.beta) == (9, 3.0, 0.01)
    assert config.prompts == ("a cat",)
    assert config.num_inference_steps == 50


def test_toml_there_and_back(tmp_path):
    config = TrainRLConfig(
        prompts=('say "hi"', "two\nlines", "Ünïcode \\ [x]"),
        learning_rate=1e-7,
        gradient_checkpointing=True,
        rewards=("image-reward=0.5:model=tiny", "judge"),
        lora_targets=("to_q",),
    )
    assert resolve(TrainRLConfig, "sd15", write(tmp_path, to_toml(config))) == config


def test_a_whole_number_is_a_number_too(tmp_path):
    config = resolve(TrainRLConfig, "tiny", write(tmp_path, "alpha = 2"))
    assert config.alpha == 2.0
    assert isinstance(config.alpha, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("round = 3", "there is no setting 'round'. Did you mean 'rounds'"),
        ("rounds = 3.0", "rounds = 3.0: must be a whole number"),
        ("rounds = true", "rounds = True: must be a whole number"),
        ("alpha = 'big'", "alpha = 'big': must be a number"),
        ("alpha = true", "alpha = True: must be a number"),
        ("gradient_checkpointing = 1", "must be true or false"),
        ("model = 3", "model = 3: must be a text"),
        ("prompts = 'a cat'", "prompts = 'a cat': must be a list of texts"),
        ("prompts = [1]", "must be a list of texts"),
        ("kl = 'gausian'", "kl = 'gausian': no such choice. Did you mean 'gaussian'?"),
        ("rounds", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_used(text, message, tmp_path):
    with pytest.raises(InputError) as caught:
        resolve(TrainRLConfig, "tiny", write(tmp_path, text))
    assert message in str(caught.value)


OUT_OF_RANGE = {
    "model": ["", " "],
    "prompts": [("",), ("a cat", " ")],
    "num_inference_steps": [0, -1],
    "guidance_scale": [-1.0, float("nan"), float("inf")],
    "eta": [0.0, -0.1, 1.1, float("nan")],
    "height": [-8, 4],
    "width": [-8, 63],
    "sample_batch_size": [0],
    "precision": ["fp8"],
    "seed": [-1, 2**63],
    "rewards": [()],
    "rounds": [0, -3],
    "samples_per_round": [0],
    "group_size": [0, -4],
    "timestep_fraction": [0.0, 1.01, float("nan")],
    "buffer_size": [-1],
    "alpha": [0.0, -1.0, float("nan"), float("inf")],
    "beta": [-0.1, float("nan"), float("inf")],
    "kl": ["l2"],
    "ratio_clip": [0.0, float("nan")],
    "clip_form": ["none"],
    "advantage": ["gae"],
    "advantage_clip": [-1.0, float("inf")],
    "updates_per_round": [0],
    "batch_size": [0],
    "gradient_accumulation": [0],
    "learning_rate": [0.0, float("nan")],
    "lr_schedule": ["step"],
    "lr_warmup_steps": [-1],
    "adam_beta1": [1.0, -0.1],
    "adam_beta2": [1.0, float("nan")],
    "weight_decay": [-1.0],
    "max_grad_norm": [0.0],
    "value_learning_rate": [0.0],
    "value_updates": [0],
    "value_batch_size": [0],
    "lora_rank": [0],
    "lora_alpha": [-1.0],
    "lora_targets": [()],
    "name": ["a/b", "..", "/a"],
    "sample_every": [-1],
    "sample_count": [-1],
    "evaluation_samples": [-1],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values]
)
def test_out_of_range(key, value):
    with pytest.raises(InputError, match=f"^{key} = "):
        TrainRLConfig(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", 0),
        ("steps", 0),
        ("log_every", 0),
        ("gamma", -0.1),
        ("gamma", float("inf")),
        ("kl_form", "kl-x"),
        ("prompt_dropout", 1.0),
        ("prompt_dropout", -0.1),
    ],
)
def test_out_of_range_in_supervised_fine_tuning(key, value):
    with pytest.raises(InputError, match=f"^{key} = "):
        TrainSFTConfig(**{key: value})


def test_on_the_edge_of_the_range():
    TrainRLConfig(
        eta=1.0, timestep_fraction=1.0, guidance_scale=0.0, beta=0.0, seed=2**63 - 1, sample_every=0
    )
    assert SampleConfig(eta=0.0).eta == 0.0


@pytest.mark.parametrize(
    ("steps", "fraction", "transitions"),
    [(20, 0.5, 240), (20, 0.01, 24), (3, 1.0, 72), (5, 0.3, 48)],
)
def test_transitions_per_round(steps, fraction, transitions):
    config = TrainRLConfig(num_inference_steps=steps, timestep_fraction=fraction)
    assert config.transitions_per_round == transitions


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TrainRLConfig().rounds = 3
