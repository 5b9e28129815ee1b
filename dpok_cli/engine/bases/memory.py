"""Whether the machine can hold what the settings ask for, before any of it is drawn.

Only what must be in memory at once is counted, which is less than what is used: settings that pass
may still need too much, but those that are refused could never run.
"""

import psutil
import torch

from dpok_cli.config import SamplingConfig
from dpok_cli.config.fields import Held, flag
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.distributed import process_state
from dpok_cli.errors import InputError

FLOAT = 4  # bytes; latents and images are float32


def check_memory(config: SamplingConfig, model: DiffusionModel, *more: Held) -> None:
    """Raise InputError for the setting that needs the most, if the machine cannot hold that.

    ``more`` is held besides what ``config`` says.
    """
    channels, rows, columns = model.latent_shape
    height, width = model.size
    latent, image = channels * rows * columns, 3 * height * width
    held = [*config.held(), *more]
    needs = {each.setting: each.latents * latent + each.images * image for each in held}
    # What the denoiser keeps at once, of a batch that may be smaller than what is asked for.
    batch = min(config.sample_batch_size, max((each.images for each in held), default=1))
    batch *= model.base.rows(config.guidance_scale)
    needs["sample_batch_size"] = batch * model.base.kept(model.latent_shape) // 2  # half precision
    setting, values = max(needs.items(), key=lambda need: need[1])
    need = values * FLOAT // process_state(config.device).num_processes
    if need > (memory := _memory(model.device)):
        raise InputError(
            f"{flag(setting)} {getattr(config, setting)} needs more than {_size(need)} of memory"
            f" for images of {width} x {height} pixels; this machine has {_size(memory)}. Give"
            " less, or smaller images."
        )


def _memory(device: torch.device) -> int:
    """Return the bytes of the machine or of the device, whichever has more."""
    own = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0
    return max(psutil.virtual_memory().total, own)


def _size(count: float) -> str:
    """Format bytes as GB."""
    return f"{count / 1e9:,.0f} GB"
