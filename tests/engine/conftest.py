"""A tiny pipeline with random weights, in Stable Diffusion's format, and a reward for it.

Its images are 16 x 16, its latents 4 x 8 x 8; nothing here needs the bundled models.
"""

import copy

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dpok_cli.config import TrainRLConfig, TrainSFTConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward

PROMPTS = ("a green rabbit", "two cats")

#: The noise of Stable Diffusion v1, as its own checkpoints write it.
SD_NOISE = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("e", "n</w>")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        model_max_length=16,
        pad_token="<|endoftext|>",
    )


def make_pipeline(scheduler=None, *, blocks=(8, 16), seed=0):
    """Build the pipeline; ``blocks`` are the UNet's widths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=blocks,
            down_block_types=("CrossAttnDownBlock2D",) * (len(blocks) - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(blocks) - 1),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=16,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler or DDIMScheduler(**SD_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


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


@pytest.fixture(scope="session")
def template() -> StableDiffusionPipeline:
    return make_pipeline()


@pytest.fixture(scope="session")
def pipeline_folder(template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    template.save_pretrained(folder)
    return folder


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
        return torch.cat([parameter.detach().flatten() for parameter in model.adapter_parameters()])

    return weights


@pytest.fixture
def shake():
    """Moves an adapter away from zero, so that it matters."""

    def shake(model, size=0.3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.adapter_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (size * noise).to(parameter.dtype)

    return shake
