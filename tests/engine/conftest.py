"""Models, configs and rewards for the engine's tests, on the very small pipeline."""

import copy
import warnings

import pytest
import torch
from diffusers import DDIMScheduler

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from support.pipelines import SD_NOISE, make_pipeline

PROMPTS = ("a green rabbit", "two cats")


class Green(RewardModel):
    """How much greener than red and blue an image is."""

    name = "green"

    def score_batch(self, images, prompts):
        red, green, blue = images.mean(dim=(2, 3)).unbind(1)
        return green - (red + blue) / 2


@pytest.fixture(scope="session")
def build():
    """Builds pipelines: ``build(scheduler, blocks=..., seed=...)``."""
    return make_pipeline


@pytest.fixture
def make_model(template):
    """Makes models that share no state; one of a scheduler of its own if asked."""

    def make(**scheduler):
        pipeline = copy.deepcopy(template)
        pipeline.scheduler = DDIMScheduler(**SD_NOISE | scheduler)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        return DiffusionModel(pipeline)

    return make


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def make_config(pipeline_folder):
    """Makes configs of the least work; what is given goes over them."""

    def make(kind=TrainRLConfig, **changes):
        small = dict(
            model=str(pipeline_folder),
            prompts=PROMPTS,
            num_inference_steps=4,
            guidance_scale=1.0,
            sample_batch_size=4,
            device="cpu",
        )
        if kind is TrainRLConfig:
            small |= dict(
                rewards=("green",),
                objective="dpok",
                noise_window=False,
                timestep_fraction=0.5,
                kl_fraction=1.0,
                kl_target=0.0,
                beta=0.01,
                change_limit=0.0,
                adam_beta2=0.999,
                max_grad_norm=1.0,
                patience=0,
                rounds=2,
                samples_per_round=4,
                group_size=2,
                updates_per_round=2,
                batch_size=4,
                lora_rank=4,
                learning_rate=1e-2,
                sample_every=0,
                evaluation_samples=4,
                tracker="",
            )
        elif kind is TrainSFTConfig:
            small |= dict(
                rewards=("green",),
                images=6,
                steps=4,
                batch_size=4,
                gamma=2.0,
                prompt_dropout=0.0,
                lora_rank=4,
                learning_rate=1e-2,
                log_every=2,
                checkpoint_every=1,
                sample_every=0,
                evaluation_samples=4,
                tracker="",
            )
        return kind(**small | changes)

    return make


@pytest.fixture
def rl_loop():
    """Makes RL loops without a run folder: ``rl_loop(config, model, reward)``."""
    from dpok_cli.engine.rl.loop import RLLoop
    from dpok_cli.engine.training.session import Session

    def make(config, model, reward):
        steps = config.rounds * config.updates_per_round
        session = Session(config, model, None, lambda: False, warnings.warn, steps)
        return RLLoop(config, reward, session)

    return make


@pytest.fixture
def green() -> WeightedReward:
    return WeightedReward([(Green(), 1.0)])


@pytest.fixture
def constant():
    """Makes rewards that give every image the same number."""

    class Constant(RewardModel):
        name = "constant"

        def __init__(self, value):
            super().__init__()
            self.value = value

        def score_batch(self, images, prompts):
            return torch.full((len(images),), self.value)

    return lambda value: WeightedReward([(Constant(value), 1.0)])


@pytest.fixture
def weights():
    """Reads all weights of an adapter into one vector: ``weights(model)``."""

    def weights(model):
        return torch.cat([parameter.detach().flatten() for parameter in model.adapter.parameters()])

    return weights


@pytest.fixture
def shake():
    """Moves an adapter away from zero, so that it matters."""

    def shake(model, size=0.3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (size * noise).to(parameter.dtype)

    return shake
