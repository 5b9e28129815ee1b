"""Checkpoints: whole or not there, whatever instant a run is cut off at.

A checkpoint is a folder with ``state.safetensors`` (every tensor, and the rest of the state as JSON
in its header: nothing in it is ever run) and ``manifest.json`` with the file's size and SHA-256. It
is written beside its place, flushed to the disk and renamed.
"""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpok_cli.errors import InputError

#: Dicts with text keys and lists of tensors, numbers, texts, booleans and None.
Tree = Any

STATE, MANIFEST = "state.safetensors", "manifest.json"
#: What reading, or taking, a state raises that is not what a run wrote.
DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError),
    *(AssertionError, SafetensorError),
)
_TENSOR = "__tensor__"


def write(folder: Path, number: int, state: Tree, keep: int) -> Path:
    """Write the state as ``folder/NUMBER`` and remove all but the ``keep`` newest checkpoints.

    A whole one that is there already stays: a run comes by a number with one state only.
    """
    place = folder / f"{number:06d}"
    try:
        read(place)
        return place
    except DAMAGE:
        pass
    temporary = folder / f".{place.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_without_tensors(state, "", tensors))
    save_file(tensors, temporary / STATE, metadata={"state": header})
    manifest = {"bytes": (temporary / STATE).stat().st_size, "sha256": _sha256(temporary / STATE)}
    (temporary / MANIFEST).write_text(json.dumps(manifest) + "\n", encoding="utf-8")
    for path in (temporary / STATE, temporary / MANIFEST, temporary):
        _flush(path)
    shutil.rmtree(place, ignore_errors=True)  # a damaged one, which resuming has passed over
    os.replace(temporary, place)
    _flush(folder)
    for old in numbers(folder)[:-keep]:
        shutil.rmtree(folder / f"{old:06d}")
    return place


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints in a folder, in order."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def read_latest(folder: Path) -> tuple[Tree | None, list[str]]:
    """Return the newest whole checkpoint's state (None if there is none), and what was damaged.

    Raises InputError if there are checkpoints and not one of them is whole.
    """
    damaged: list[str] = []
    found = numbers(folder)
    for number in reversed(found):
        path = folder / f"{number:06d}"
        try:
            return read(path), damaged
        except DAMAGE as error:
            damaged.append(f"The checkpoint {path} is damaged ({error}) and was passed over.")
    if damaged:
        raise InputError(
            f"No checkpoint in {folder} is whole, so there is nothing to go on from: remove that"
            " folder to start the run anew."
        )
    return None, damaged


def read(path: Path) -> Tree:
    """Read one checkpoint; raises one of DAMAGE if it is not whole."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    size = (path / STATE).stat().st_size
    if size != manifest["bytes"]:
        raise ValueError(f"{STATE} has {size} bytes, not {manifest['bytes']}")
    if _sha256(path / STATE) != manifest["sha256"]:
        raise ValueError(f"{STATE} has another SHA-256 than its manifest")
    with safe_open(path / STATE, "pt") as file:
        header = json.loads(file.metadata()["state"])
        return _with_tensors(header, file)


def random_state() -> Tree:
    """Return the state of every global random number generator of this process.

    The engine draws from generators of its own, seeded anew each round; a plugin may not.
    """
    version, numbers_, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
        "python": [version, list(numbers_), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
    }


def restore_random_state(state: Tree) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers_, gauss = state["python"]
    random.setstate((version, tuple(numbers_), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def _without_tensors(tree: Tree, path: str, tensors: dict[str, Tensor]) -> Tree:
    """Return the tree with a note in place of each tensor, which goes to ``tensors``."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(tree, dict):
        return {
            str(key): _without_tensors(value, f"{path}/{key}", tensors)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [_without_tensors(value, f"{path}/{k}", tensors) for k, value in enumerate(tree)]
    return tree


def _with_tensors(tree: Tree, file: Any) -> Tree:
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return file.get_tensor(tree[_TENSOR])
        return {key: _with_tensors(value, file) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_tensors(value, file) for value in tree]
    return tree


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have a file or a folder's entries reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
