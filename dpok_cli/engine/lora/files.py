"""Files of LoRA weights: found, checked and read without torch until their weights are needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dpok_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from dpok_cli.config import TrainingConfig

#: What diffusers calls the file in an adapter's folder.
ADAPTER_FILE = "pytorch_lora_weights.safetensors"


def adapter_file(adapter: Path) -> Path:
    """Return the file of LoRA weights in a folder, or the file itself."""
    return adapter / ADAPTER_FILE if adapter.is_dir() else adapter


def check_adapter(adapter: Path, flag: str = "--adapter") -> None:
    """Raise InputError unless ``adapter`` is a safetensors file of LoRA weights, or its folder.

    ``flag`` is the option that named it. Reads the header only.
    """
    file = adapter_file(adapter)
    if not file.is_file():
        raise InputError(f"There is no adapter {file}. Give {flag} a run's adapter folder.")
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is not safetensors, the only format that is read. Give {flag} a run's adapter"
            " folder."
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


def read_adapter(
    adapter: Path, config: TrainingConfig, expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Read LoRA weights in diffusers' format, by the names and shapes of ``expected``.

    Raises InputError, which names the flag to give, if rank, scale or layers differ from those that
    ``config`` asks for.
    """
    from safetensors import SafetensorError, safe_open

    check_adapter(adapter, "--init-adapter")
    try:
        with safe_open(adapter_file(adapter), "pt") as file:
            weights = {_as_peft(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"The adapter {adapter} cannot be read: {error}.") from error
    ranks = {len(weight) for name, weight in weights.items() if ".lora_A." in name}
    if len(ranks) == 1 and ranks != {config.lora_rank}:
        (rank,) = ranks
        raise InputError(
            f"The adapter {adapter} is of rank {rank}, and lora_rank is {config.lora_rank}: give"
            f" --lora-rank {rank}."
        )
    alpha = notes.get("unet.lora_alpha", config.lora_rank)
    if alpha != (config.lora_alpha or config.lora_rank):
        raise InputError(f"The adapter {adapter} has another scale: give --lora-alpha {alpha:g}.")
    layers, expected_layers = ({_layer(name) for name in names} for names in (weights, expected))
    if layers != expected_layers:
        flags = " ".join(f"--lora-targets {layer}" for layer in sorted(layers))
        raise InputError(
            f"The adapter {adapter} is on the layers {', '.join(sorted(layers)) or 'none'}, not on"
            f" {', '.join(sorted(expected_layers))}: give {flags or 'another'}."
        )
    shapes, expected_shapes = (
        {name: weight.shape for name, weight in each.items()} for each in (weights, expected)
    )
    if shapes != expected_shapes:
        raise InputError(
            f"The adapter {adapter} does not fit this model. Give --model the model that it was"
            " trained on."
        )
    return weights


def with_sorted_header(file: bytes) -> bytes:
    """Return a safetensors file with the keys of its header sorted.

    safetensors writes the metadata's keys in any order, so equal adapters would differ in bytes.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[end:]


def _as_peft(name: str) -> str:
    """Return a weight's name as peft has it; diffusers writes its own and reads both."""
    return name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def _layer(name: str) -> str:
    """Return what --lora-targets calls a weight's layer, as to_q or to_out.0."""
    parts = name.partition(".lora_")[0].split(".")
    return ".".join(parts[-2:] if parts[-1].isdecimal() else parts[-1:])
