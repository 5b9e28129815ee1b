"""A model with its adapter merged into the weights, as a pipeline of its own."""

from pathlib import Path

import torch

from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.runs.files import replacing
from dpok_cli.engine.runs.lock import making


def write_merged(model: DiffusionModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a pipeline folder that draws without an adapter what ``model`` draws with it.

    ``dtype`` is by default that of the weights. The model has no adapter afterwards.
    """
    pipeline = model.pipeline
    adapter = model.adapter
    with model.encoders.present(adapter.text, adapter.source):
        pipeline.fuse_lora(components=[*adapter.weights()], safe_fusing=True)
        pipeline.unload_lora_weights()
        if dtype:
            pipeline.to(dtype)
        with making(folder, "--output"), replacing(folder) as temporary:
            pipeline.save_pretrained(temporary)
    adapter.remove()
