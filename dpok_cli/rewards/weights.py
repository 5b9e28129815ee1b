"""Find and read the weights of rewards: bundled, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpok_cli import tiny as bundled
from dpok_cli.errors import RewardError
from dpok_cli.inputs import at_home

if TYPE_CHECKING:
    from torch import Tensor


def find(
    model: str,
    *names: str,
    tiny: str = "",
    advice: str = "give a folder",
    local_only: bool = False,
) -> Path:
    """Return the path of the first of the files ``names`` that exists in ``model``.

    ``model`` is a folder, a hub id, or "tiny" for the bundled model in the folder ``tiny``. With
    ``local_only`` nothing is downloaded, but files in the hub's cache are found. Raises
    ``RewardError`` if no file exists or the hub cannot be reached; ``advice`` names an alternative
    to the hub.
    """
    is_bundled = bool(tiny) and model == "tiny"
    folder = bundled.folder(tiny) if is_bundled else at_home(Path(model))
    if not is_bundled and not folder.is_dir():
        return _download(model, names, advice, local_only)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise RewardError(f"the folder {folder} has no {' or '.join(names)}")


def _download(hub_id: str, names: tuple[str, ...], advice: str, local_only: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        for name in names:
            try:
                return Path(hf_hub_download(hub_id, name, local_files_only=local_only))
            except EntryNotFoundError as error:
                absent = error
        raise absent
    except HFValidationError as error:
        raise RewardError(f"{hub_id!r} is neither a folder nor a hub id") from error
    except Exception as error:
        raise RewardError(
            f"cannot get {' or '.join(names)} of {hub_id!r} from the Hugging Face hub"
            f" ({type(error).__name__}); check the name and the network, or {advice}"
        ) from error


def read(file: Path) -> dict[str, Tensor]:
    """Read a checkpoint to the CPU: safetensors, or PyTorch's format without running its code."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    import torch

    return torch.load(file, map_location="cpu", weights_only=True)
