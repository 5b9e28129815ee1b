"""A notebook in which a cell that trains is run twice, or again with another rank."""

import copy

import pytest
import torch

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.rl.loop import train_rl
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.sft.loop import train_sft
from dpok_cli.rewards.manager import build

SHARED = dict(
    prompts=["cat"],
    num_inference_steps=2,
    guidance_scale=1.0,
    batch_size=2,
    sample_every=0,
    tracker="",
    device="cpu",
)
TRAININGS = {
    "train-rl": (
        train_rl,
        TrainRLConfig(**SHARED, rounds=1, samples_per_round=2, updates_per_round=1, lora_rank=2),
    ),
    "train-sft": (
        train_sft,
        TrainSFTConfig(**SHARED, images=2, steps=1, gamma=200.0, lora_rank=2, dataset="set"),
    ),
}


def weights(model):
    named = model.pipeline.unet.named_parameters()
    return {name: value.detach().clone() for name, value in named if ".lora_" in name}


@pytest.fixture(params=TRAININGS)
def train(request, template, tmp_path, monkeypatch):
    """Trains one model, from Python; returns the weights of its adapter."""
    monkeypatch.chdir(tmp_path)
    loop, config = TRAININGS[request.param]
    pipeline = copy.deepcopy(template)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    model = DiffusionModel(pipeline)

    def train(**changes):
        changed = type(config)(**vars(config) | changes)
        list(loop(changed, model, build(["jpeg-compressibility"], "cpu")))
        return weights(model)

    return train


def test_the_second_training_starts_from_the_base(train):
    first, second = train(), train()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(first[name].any() for name in first if "lora_B" in name)  # it trained something


def test_another_rank_and_other_layers_take_effect(train):
    first = train()
    second = train(lora_rank=3, lora_targets=("to_q",))
    assert {value.shape[0] for name, value in first.items() if "lora_A" in name} == {2}
    assert {value.shape[0] for name, value in second.items() if "lora_A" in name} == {3}
    assert all(".to_q." in name for name in second)
