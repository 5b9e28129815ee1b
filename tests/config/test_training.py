from dataclasses import replace

import pytest

from dpok_cli.config import TrainingConfig, TrainSFTConfig, sampling_settings
from dpok_cli.config.fields import flag
from dpok_cli.errors import InputError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rewards", ()),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        *(("learning_rate", value) for value in (0.0, float("nan"))),
        ("lr_schedule", "step"),
        ("lr_warmup_steps", -1),
        *(("adam_beta1", value) for value in (1.0, -0.1)),
        *(("adam_beta2", value) for value in (1.0, float("nan"))),
        ("weight_decay", -1.0),
        ("max_grad_norm", 0.0),
        ("lora_rank", 0),
        ("lora_alpha", -1.0),
        ("lora_targets", ("to_q", "")),
        *(("name", value) for value in ("a/b", ".", "..", "/a", "x" * 256, "é" * 128)),
        ("checkpoint_every", -1),
        ("keep", 0),
        ("sample_every", -1),
        ("sample_count", -1),
        ("evaluation_samples", -1),
        ("tracker", "tensorbord"),
    ],
)
def test_out_of_range(key, value):
    with pytest.raises(InputError, match=f"^{flag(key)} "):
        TrainingConfig(**{key: value})


def test_messages_of_lists_and_names():
    with pytest.raises(InputError, match=r"^--reward none: must be at least one reward\.$"):
        TrainingConfig(rewards=[])
    with pytest.raises(InputError, match="a plain folder name of 255 bytes at most"):
        TrainingConfig(name="a/b")
    with pytest.raises(InputError, match="no such choice. Did you mean 'tensorboard'.* Known: aim"):
        TrainingConfig(tracker="tensorbord")


def test_on_the_edge_of_the_range():
    edge = {"name": "x" * 255, "tracker": "", "sample_every": 0, "adam_beta1": 0.0, "keep": 1}
    config = TrainingConfig(**edge)
    assert {key: getattr(config, key) for key in edge} == edge


def test_evaluations_may_have_steps_and_noise_of_their_own():
    config = TrainSFTConfig(prompts=["a cat"], num_inference_steps=10, seed=3)
    same = config.for_evaluation()
    assert (same.num_inference_steps, same.eta, same.seed) == (10, config.eta, 3)
    other = replace(config, evaluation_steps=40, evaluation_eta=0.0).for_evaluation()
    assert (other.num_inference_steps, other.eta, other.prompts) == (40, 0.0, ("a cat",))
    assert (
        sampling_settings(vars(replace(config, evaluation_steps=40)))["num_inference_steps"] == 40
    )
