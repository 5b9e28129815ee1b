"""Pipelines and adapters of two structures: the very small one, and Stable Diffusion v1.5's."""

import copy

import pytest
import torch

from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.lora.weights import Layer
from support.pipelines import SD15_BLOCKS, make_pipeline

STRUCTURES = {"very small": {}, "SD v1.5": SD15_BLOCKS}


@pytest.fixture(scope="session")
def templates():
    return {name: make_pipeline(**how) for name, how in STRUCTURES.items()}


@pytest.fixture(params=STRUCTURES)
def structure(request, templates):
    """Makes copies of a pipeline with frozen weights, one for each structure."""

    def make():
        pipeline = copy.deepcopy(templates[request.param])
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def trained(shake):
    """Gives a pipeline an adapter that matters: ``trained(pipeline, targets, rank, alpha)``."""

    def trained(pipeline, targets, rank=3, alpha=5.0):
        model = DiffusionModel(pipeline)
        model.adapter.add(rank, alpha, targets, seed=0)
        shake(model)
        return model

    return trained


@pytest.fixture
def text_lora():
    """Random LoRA weights for each attention and MLP layer of a pipeline's text encoder."""

    def text_lora(pipeline, rank=2, alpha=4.0, size=0.5):
        generator = torch.Generator().manual_seed(1)
        return {
            f"text_model.{name}": Layer(
                size * torch.randn(rank, module.in_features, generator=generator),
                size * torch.randn(module.out_features, rank, generator=generator),
                alpha,
            )
            for name, module in pipeline.text_encoder.named_modules()
            if isinstance(module, torch.nn.Linear)
        }

    return text_lora


def images(pipeline, seed=0):
    """Images of one prompt, (1, 3, H, W) in [0, 1], as diffusers draws them."""
    return pipeline(
        "a green rabbit",
        num_inference_steps=3,
        guidance_scale=3.0,
        eta=1.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images


def equal(one, other):
    """Whether two adapters have the same layers, weights and alphas."""
    return one.keys() == other.keys() and all(
        one[part].keys() == other[part].keys()
        and all(
            torch.equal(a.down, b.down) and torch.equal(a.up, b.up) and a.alpha == b.alpha
            for a, b in ((one[part][name], other[part][name]) for name in one[part])
        )
        for part in one
    )
