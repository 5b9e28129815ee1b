"""Which device a name stands for; apart from the model, so that rewards can be tried without it."""

import torch

from dpok_cli.errors import InputError


def device_of(name: str) -> torch.device:
    """Return the device that a name stands for; "auto" is what accelerate finds."""
    from accelerate import PartialState

    if name == "auto":
        return PartialState().device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".:")
        raise InputError(f"device = {name!r}: {reason}.") from error
