"""Files of LoRA weights for other tools, in the forms that `files` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dpok_cli import __version__
from dpok_cli.engine.lora.files import METADATA, PEFT_CONFIG, PEFT_FILE, with_sorted_header
from dpok_cli.engine.lora.ldm import ldm_name
from dpok_cli.engine.lora.weights import Layer, Lora, Part, peft_config, rank_and_alpha
from dpok_cli.engine.runs.files import replacing
from dpok_cli.engine.runs.lock import making
from dpok_cli.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: diffusers: a file for ``load_lora_weights``. kohya: one for ComfyUI, A1111 and kohya's scripts.
#: peft: a folder for ``PeftModel.from_pretrained``.
Form = Literal["diffusers", "kohya", "peft"]
FORMS = get_args(Form)

#: kohya's names of the networks, of Stable Diffusion v1 and v2, and of SDXL.
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
_KOHYA_XL = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
#: kohya's names of base models, by the width of their prompts' embeddings.
_XL = "sdxl_base_v1-0"
_KOHYA_BASES = {768: "sd_v1", 1024: "sd_v2", 2048: _XL}


def write(
    lora: Lora, form: Form, path: Path, *, base: str = "", dtype: torch.dtype | None = None
) -> None:
    """Write an adapter of the model ``base`` to a new file, or for peft to a new folder.

    ``dtype`` is by default that of the weights. Raises InputError if a form or dtype cannot hold
    the weights, or if there is such a file already.
    """
    lora = cast(lora, dtype)
    with making(path, "--output"):
        if form == "kohya":
            write_kohya(lora, path, base)
        elif form == "peft":
            write_peft(lora, path, base)
        else:
            write_diffusers(lora, path)


def cast(lora: Lora, dtype: torch.dtype | None) -> Lora:
    """Return the weights in a dtype, None for their own; raises InputError for one too narrow."""
    if dtype is None:
        return lora
    found = {
        part: {
            name: Layer(layer.down.to(dtype), layer.up.to(dtype), layer.alpha)
            for name, layer in layers.items()
        }
        for part, layers in lora.items()
    }
    for layers in found.values():
        for name, layer in layers.items():
            if not (layer.down.isfinite().all() and layer.up.isfinite().all()):
                raise InputError(
                    f"The weights of {name} are too large for {str(dtype).removeprefix('torch.')}."
                )
    return found


def write_diffusers(lora: Lora, file: Path) -> None:
    """Write what diffusers' ``load_lora_weights`` takes, in peft's names.

    diffusers takes the first name to tell how all are written, so all are written in one way.
    """
    weights: dict[str, Tensor] = {}
    notes: dict[str, Any] = {}
    for part, layers in lora.items():
        weights |= {f"{part}.{name}": weight for name, weight in _by_peft_name(layers).items()}
        notes |= {f"{part}.{key}": value for key, value in peft_config(layers).items()}
    _save(weights, {METADATA: json.dumps(notes, indent=2, sort_keys=True)}, file)


def write_kohya(lora: Lora, file: Path, base: str) -> None:
    """Write what ComfyUI, A1111 and kohya's scripts read, with kohya's metadata.

    Raises InputError for an adapter of another family than Stable Diffusion v1, v2 and XL.
    """
    import torch

    if others := lora.keys() - _KOHYA_XL.keys():
        raise InputError(
            f"The adapter is for {' and '.join(sorted(others))}; kohya's form is written for Stable"
            " Diffusion v1, v2 and XL only: give --format diffusers, which ComfyUI reads as well."
        )
    version = _base_version(lora)
    heads = _KOHYA_XL if version == _XL else _KOHYA
    weights = {}
    for part, layers in lora.items():
        for name, layer in layers.items():
            own = ldm_name(name) if part == "unet" and version == _XL else name
            key = f"{heads[part]}_{own.replace('.', '_')}"
            weights[f"{key}.lora_down.weight"] = layer.down
            weights[f"{key}.lora_up.weight"] = layer.up
            weights[f"{key}.alpha"] = torch.tensor(float(layer.alpha), dtype=layer.down.dtype)
    rank, alpha = rank_and_alpha(next(iter(lora.values())))
    header = {
        "ss_sd_model_name": base,
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2") if version else "",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
        "ss_output_name": file.stem,
        "ss_training_comment": f"dpok {__version__}",
    }
    _save(weights, {key: value for key, value in header.items() if value}, file)


def write_peft(lora: Lora, folder: Path, base: str) -> None:
    """Write what peft's ``PeftModel.from_pretrained(unet, folder)`` takes.

    Raises InputError for an adapter of several networks, which the form cannot hold.
    """
    if len(lora) > 1:
        raise InputError(
            f"peft's form holds one network, and the adapter is of {' and '.join(lora)}: give"
            " --format diffusers or kohya."
        )
    from peft import LoraConfig

    (layers,) = lora.values()
    # By their full names: the ends of names may be those of other layers as well.
    config = LoraConfig(**peft_config(layers) | {"target_modules": list(layers)})
    config.base_model_name_or_path = base or None
    config.inference_mode = True
    head = "base_model.model."
    weights = {f"{head}{name}": weight for name, weight in _by_peft_name(layers).items()}
    with replacing(folder) as temporary:
        temporary.mkdir()
        _save(weights, {}, temporary / PEFT_FILE)
        config.save_pretrained(temporary)
    assert (folder / PEFT_CONFIG).is_file()


def _by_peft_name(layers: Part) -> dict[str, Tensor]:
    halves = (("lora_A", "down"), ("lora_B", "up"))
    return {
        f"{name}.{half}.weight": getattr(layer, matrix)
        for name, layer in layers.items()
        for half, matrix in halves
    }


def _base_version(lora: Lora) -> str:
    """Return kohya's name of the base, "" if the adapter has no layer that tells it."""
    layers = lora.get("unet", {})
    # Only SDXL has a second text encoder, and more than one transformer in a place of its UNet.
    if "text_encoder_2" in lora or any(".transformer_blocks.1." in name for name in layers):
        return _XL
    for name, layer in layers.items():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            return _KOHYA_BASES.get(layer.down.shape[1], "")
    return ""


def _save(weights: dict[str, Tensor], header: dict[str, Any], file: Path) -> None:
    from safetensors.torch import save_file

    with replacing(file) as temporary:
        save_file(
            {name: weight.contiguous() for name, weight in weights.items()},
            temporary,
            metadata={"format": "pt", **header},
        )
        temporary.write_bytes(with_sorted_header(temporary.read_bytes()))
