"""Very small pipelines of every family, as examples/random_pipeline.py makes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

_FILE = Path(__file__).parents[2] / "examples" / "random_pipeline.py"
_spec = importlib.util.spec_from_file_location("random_pipeline", _FILE)
random_pipeline = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(random_pipeline)

FAMILIES = tuple(random_pipeline.FAMILIES)
#: Those besides Stable Diffusion v1 and v2.
NEWER = tuple(family for family in FAMILIES if family != "sd15")


def make(family: str, seed: int = 0) -> Any:
    """Build the tiny pipeline of a family, frozen; a name of `FAMILIES`."""
    return _frozen(random_pipeline.make(family, seed=seed))


def guidance(pipeline: Any, scale: float) -> dict[str, Any]:
    """Return how the pipeline's own call takes guidance, without a negative prompt."""
    if type(pipeline).__name__ == "QwenImagePipeline":
        return {"true_cfg_scale": scale, "negative_prompt": " "}
    if type(pipeline).__name__ == "ZImagePipeline":
        return {"guidance_scale": scale - 1}  # its 0 is none
    return {"guidance_scale": scale}


def make_sdxl() -> Any:
    """Build a pipeline with the blocks of SDXL, and encoders of different widths as it has."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    pipeline = random_pipeline.make("sdxl")
    wide, settings = pipeline.text_encoder_2.config, dict(pipeline.unet.config)
    wide.hidden_size = wide.projection_dim = 24
    settings |= dict(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(2, 2, 4),
        cross_attention_dim=16 + 24,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(settings)
        pipeline.register_modules(unet=unet, text_encoder_2=CLIPTextModelWithProjection(wide))
    return _frozen(pipeline)


def _frozen(pipeline: Any) -> Any:
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
