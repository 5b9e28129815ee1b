"""Which device a name stands for; apart from the model, so that rewards can be tried without it."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState

from dpok_cli.errors import InputError

#: The other processes wait while the first one draws grids and measures.
PATIENCE = timedelta(hours=2)


def process_state(name: str = "auto") -> PartialState:
    """Meet the other processes, if there are any; accelerate's view of them.

    Raises InputError where accelerate was told to shard the model.
    """
    for sharding in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{sharding}", "false").lower() == "true":
            raise InputError(
                f"accelerate was told to use {sharding}, by which an adapter cannot be trained"
                " here: give accelerate launch --multi_gpu, or another --config_file."
            )
    on_cpu = name == "cpu" or (name == "auto" and not torch.accelerator.is_available())
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


def device_of(name: str) -> torch.device:
    """Return the device that a name stands for; "auto" is what accelerate finds."""
    if name == "auto":
        return process_state().device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".:")
        raise InputError(f"device = {name!r}: {reason}.") from error
