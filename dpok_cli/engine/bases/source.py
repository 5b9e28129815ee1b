"""Where a model's files are, checked before anything heavy is imported."""

import json
from pathlib import Path

from dpok_cli import tiny
from dpok_cli.config import TINY
from dpok_cli.errors import InputError


def locate(model: str) -> str:
    """Return what ``from_pretrained`` takes: the bundled folder, another folder or a hub id."""
    return str(tiny.folder("pipeline")) if model == TINY else model


def check_source(model: str) -> None:
    """Raise InputError for a folder that holds no Stable Diffusion pipeline; hub ids pass."""
    folder = Path(locate(model))
    if not folder.exists():
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise InputError(
                f"There is no model folder {model}. Give --model 'tiny', a folder or a hub id."
            )
        return
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"{model} is no diffusers pipeline: it has no model_index.json. Give --model a folder"
            " that StableDiffusionPipeline.save_pretrained wrote."
        )
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{index} cannot be read as a pipeline's index: {error}. Give --model another folder."
        ) from error
    if kind != "StableDiffusionPipeline":
        raise InputError(
            f"{model} holds a {kind}; only Stable Diffusion v1 and v2 (StableDiffusionPipeline)"
            " can be used."
        )
