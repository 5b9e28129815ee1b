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
OTHERS = FAMILIES[1:]


def make(family: str, seed: int = 0) -> Any:
    """Build the tiny pipeline of a family, frozen: "sd15", "sdxl", "sd35" or "flux"."""
    pipeline = random_pipeline.make(family, seed=seed)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
