"""Checkpoints: each is complete or absent, whenever a run is killed.

A checkpoint is a folder with ``state.safetensors`` (every tensor, and the rest of the state as JSON
in its header, so nothing in it is executed) and ``manifest.json`` with the file's size and SHA-256.
It is written to a temporary folder, flushed to the disk and renamed.
"""

import hashlib
import json
import random
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpok_cli.engine.distributed import all_gather_object
from dpok_cli.engine.runs.files import flush, remove, replacing
from dpok_cli.errors import InputError, TrainingError
from dpok_cli.strict_json import dumps

#: Dicts with text keys and lists of tensors, numbers, texts, booleans and None.
Tree = Any

STATE, MANIFEST = "state.safetensors", "manifest.json"
#: What reading or loading a state raises if it is not one that a run wrote.
DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError),
    *(AssertionError, SafetensorError),
)
_TENSOR, _NUMBER = "__tensor__", "__number__"


class Stateful(Protocol):
    """A part of a training whose state a checkpoint restores."""

    def state_dict(self) -> Tree: ...
    def load_state_dict(self, state: Any) -> None: ...


class Checkpoints:
    """The checkpoints of one run: what they are made of, and where they are kept."""

    def __init__(
        self, folder: Path | None, keep: int, accelerator: Accelerator, parts: dict[str, Stateful]
    ):
        """``parts`` make up a checkpoint, "adapter" among them; without a ``folder`` none is kept.

        Every rank reads, and rank 0 writes.
        """
        self.folder, self.keep, self.accelerator = folder, keep, accelerator
        self.parts = parts | {"random": RandomState(accelerator)}

    def write(self, number: int) -> None:
        """Write the state after round or step ``number``.

        Raises TrainingError if the ranks' adapters are no longer equal.
        """
        if self.folder is None:
            return
        digest = hashlib.sha256()
        for weight in self.parts["adapter"].state_dict().values():
            digest.update(weight.detach().cpu().numpy().tobytes())
        if len(set(all_gather_object(digest.hexdigest(), self.accelerator))) > 1:
            raise TrainingError(
                "The adapters of the processes differ, so they no longer train one model. The last"
                " checkpoint was written before that."
            )
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if self.accelerator.is_main_process:
            write(self.folder, number, {"number": number, **state}, self.keep)
        self.accelerator.wait_for_everyone()

    def resume(self, warn: Callable[[str], None]) -> int:
        """Load the newest intact checkpoint; returns its round or step, 0 if there is none.

        ``warn`` gets a line for each damaged checkpoint. Raises InputError, with nothing written,
        if there are checkpoints and none of them can be used.
        """
        if self.folder is None:
            return 0
        state, damaged = read_latest(self.folder)
        if state is not None:
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
            except DAMAGE as error:
                raise InputError(
                    f"The checkpoints in {self.folder} are of another kind of run, or of an older"
                    f" dpok ({type(error).__name__}: {error}). Start a new run with another --name."
                ) from error
        for line in damaged:
            warn(line)
        return state["number"] if state else 0


class RandomState:
    """The global random number generators of every rank.

    The engine seeds its own generators each round; a plugin may use the global ones.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def state_dict(self) -> list[Tree]:
        return all_gather_object(random_state(), self.accelerator)

    def load_state_dict(self, state: list[Tree]) -> None:
        rank = self.accelerator.process_index
        if rank < len(state):
            restore_random_state(state[rank])


def write(folder: Path, number: int, state: Tree, keep: int) -> Path:
    """Write the state as ``folder/NUMBER`` and remove all but the ``keep`` newest checkpoints.

    An intact one that exists is kept: a run reaches a number with one state only.
    """
    place = folder / f"{number:06d}"
    try:
        read(place)
        return place
    except DAMAGE:
        pass
    with replacing(place) as temporary:
        temporary.mkdir(parents=True)
        tensors: dict[str, Tensor] = {}
        header = dumps(_without_tensors(state, "", tensors))
        save_file(tensors, temporary / STATE, metadata={"state": header})
        size, digest = (temporary / STATE).stat().st_size, _sha256(temporary / STATE)
        manifest = dumps({"bytes": size, "sha256": digest})
        (temporary / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        for path in (temporary / STATE, temporary / MANIFEST, temporary):
            flush(path)
    flush(folder)
    for old in numbers(folder)[:-keep]:
        remove(folder / f"{old:06d}")
    return place


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints in a folder, in order."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def read_latest(folder: Path) -> tuple[Tree | None, list[str]]:
    """Return the newest intact checkpoint's state (None if there is none), and what was damaged.

    Raises InputError if there are checkpoints and none of them is intact.
    """
    damaged: list[str] = []
    found = numbers(folder)
    for number in reversed(found):
        path = folder / f"{number:06d}"
        try:
            return read(path), damaged
        except DAMAGE as error:
            damaged.append(f"The checkpoint {path} is damaged ({error}) and was skipped.")
    if damaged:
        raise InputError(
            f"No checkpoint in {folder} is intact, so the run cannot be resumed: remove that"
            " folder to start it again."
        )
    return None, damaged


def read(path: Path) -> Tree:
    """Read one checkpoint; raises one of DAMAGE if it is damaged."""
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
    """Return the state of every global random number generator of this process."""
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
    """Return the tree as JSON has it, with notes in place of what JSON lacks.

    Those are tensors, which go to ``tensors``, and numbers that are not finite.
    """
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(tree, float) and not isfinite(tree):
        return {_NUMBER: str(tree)}
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
        if _NUMBER in tree:
            return float(tree[_NUMBER])
        return {key: _with_tensors(value, file) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_tensors(value, file) for value in tree]
    return tree


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
