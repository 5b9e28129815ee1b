"""The presets of the newer families: their batches, and their layers and sizes on their models."""

import pytest

from dpok_cli.config import TrainSFTConfig, resolve
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.engine.sampling.step import Denoising
from support.families import make

#: Images of an update, as their files say; and steps with noise.
UPDATES = {"sdxl": (64, 20), "sd35": (128, 7), "flux": (96, 4)}


@pytest.fixture(scope="module", params=UPDATES)
def preset(request):
    """A preset and a tiny model of its family."""
    return request.param, DiffusionModel(make(request.param))


def test_an_update_is_on_all_steps_with_noise_of_a_share_of_the_images(preset):
    name, model = preset
    config = resolve(TrainRLConfig, name)
    latents = (16, config.height // 8, config.width // 8)  # of the real model
    schedule = model.base.schedule(config.num_inference_steps, latents)
    steps = len(Denoising.of(schedule, config.eta).stochastic)
    images, written = UPDATES[name]
    assert steps == written
    assert config.batch_size * config.gradient_accumulation == images * steps
    assert config.samples_per_round == config.updates_per_round * images
    assert config.samples_per_round % config.group_size == 0
    assert config.samples_per_round // config.group_size == 16  # prompts that have a turn


@pytest.mark.parametrize("kind", [TrainRLConfig, TrainSFTConfig])
def test_the_family_has_the_layers_and_draws_the_size(preset, kind):
    name, model = preset
    config = resolve(kind, name)
    assert model.base.latent_shape(config.height, config.width)
    model.adapter.add(1, 0.0, config.lora_targets, 0)
    adapted = {key.split(".lora_")[0] for key, _ in model.adapter.named_parameters()}
    assert len(adapted) >= 8
    feed_forward = any(".ff." in layer for layer in adapted)
    assert feed_forward == (name == "flux" and kind is TrainRLConfig)
    model.adapter.remove()
