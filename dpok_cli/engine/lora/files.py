"""The file of an adapter: read to start from, and the same bytes for the same weights."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.bases.source import adapter_file, check_adapter
from dpok_cli.errors import InputError


def read_adapter(
    adapter: Path, config: TrainingConfig, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Read LoRA weights in diffusers' format that are to replace ``own``, by the same names.

    Raises InputError, which names the flag to give, if rank, scale or layers are others.
    """
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
    layers, own_layers = ({_layer(name) for name in names} for names in (weights, own))
    if layers != own_layers:
        flags = " ".join(f"--lora-targets {layer}" for layer in sorted(layers))
        raise InputError(
            f"The adapter {adapter} is on the layers {', '.join(sorted(layers)) or 'none'}, not on"
            f" {', '.join(sorted(own_layers))}: give {flags or 'another'}."
        )
    if {k: w.shape for k, w in weights.items()} != {k: w.shape for k, w in own.items()}:
        raise InputError(
            f"The adapter {adapter} does not fit this model. Give --model the model that it was"
            " trained on."
        )
    return weights


def _as_peft(name: str) -> str:
    """Return a weight's name as peft has it; diffusers writes its own and reads both."""
    return name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def _layer(name: str) -> str:
    """Return what --lora-targets calls a weight's layer, as to_q or to_out.0."""
    parts = name.partition(".lora_")[0].split(".")
    return ".".join(parts[-2:] if parts[-1].isdecimal() else parts[-1:])


def in_order(file: bytes) -> bytes:
    """Return a safetensors file with its header's keys in order.

    safetensors writes the metadata's keys in any order, and so the same adapter as other bytes.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[end:]
