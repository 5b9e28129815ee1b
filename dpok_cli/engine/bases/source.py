"""Where models and adapters lie, checked before anything heavy is imported."""

import json
from pathlib import Path

from dpok_cli import tiny
from dpok_cli.config import TINY
from dpok_cli.errors import InputError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"


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


def adapter_file(adapter: Path) -> Path:
    """Return the file of LoRA weights in a folder, or the file itself."""
    return adapter / ADAPTER_FILE if adapter.is_dir() else adapter


def check_adapter(adapter: Path, flag: str = "--adapter") -> None:
    """Raise InputError unless ``adapter`` is LoRA weights in safetensors, or a folder of them.

    ``flag`` is what the person gave it with.
    """
    file = adapter_file(adapter)
    if not file.is_file():
        raise InputError(f"There is no adapter {file}. Give {flag} a run's adapter folder.")
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is not safetensors; adapters in other formats are not read. Give {flag} a"
            " run's adapter folder."
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"The adapter {file} cannot be read: {error}. Give {flag} another."
        ) from error
    if not any(".lora" in name for name in names):
        raise InputError(f"{file} holds no LoRA weights. Give {flag} a run's adapter folder.")
