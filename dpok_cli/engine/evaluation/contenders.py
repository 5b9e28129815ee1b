"""The models that an evaluation compares, found by run or adapter without torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dpok_cli.config import SamplingConfig, sampling_settings
from dpok_cli.config.fields import flag, shown
from dpok_cli.config.training import is_folder_name
from dpok_cli.engine.lora.files import ADAPTER_FILE, adapter_file, check_adapter
from dpok_cli.engine.runs.folder import LATEST, RunFolder
from dpok_cli.errors import InputError
from dpok_cli.inputs import at_home

BASE = "base"

# Sampler settings of a run that may differ between compared runs.
_MAY_DIFFER = {"prompts", "sample_batch_size"}


@dataclass(frozen=True)
class Contender:
    """A model to compare; without an ``adapter`` it is the base."""

    name: str
    adapter: Path | None = None
    #: The config.toml of the run that trained the adapter; empty if there is none.
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_prompts(self) -> tuple[str, ...]:
        return tuple(self.config.get("prompts", ()))

    @property
    def trained_rewards(self) -> tuple[str, ...]:
        return tuple(self.config.get("rewards", ()))

    def digest(self) -> str | None:
        """Return the SHA-256 of the adapter's file, None for the base."""
        if self.adapter is None:
            return None
        return hashlib.sha256(adapter_file(self.adapter).read_bytes()).hexdigest()


def find_contenders(runs: Sequence[str], adapters: Sequence[str], runs_dir: str) -> list[Contender]:
    """Find the models to compare with the base; if none is named, the newest run's.

    ``runs`` are names, folders or "latest"; ``adapters`` are LoRA folders or files. Each may have
    "NAME=" before it. Raises InputError for one that does not exist, or a name given twice.
    """
    found = []
    if not runs and not adapters:
        runs = [_newest(runs_dir)]
    for text in runs:
        name, path = _split(text, lambda run: bool(RunFolder.find(run, runs_dir)))
        folder = RunFolder.open(path, runs_dir)
        found.append(
            Contender(name or folder.path.resolve().name, folder.adapter, folder.read_config())
        )
    for text in adapters:
        name, path = _split(text)
        adapter = Path(at_home(path))
        run = adapter.resolve().parent
        config = {}
        if adapter.name == "adapter" and (run / "config.toml").is_file():
            name, config = name or run.name, RunFolder(run).read_config()
        found.append(Contender(name or adapter.resolve().stem, adapter, config))
    names = [each.name for each in found]
    for each in found:
        if each.name == BASE or names.count(each.name) > 1 or not is_folder_name(each.name):
            raise InputError(
                f"The model name {each.name!r} is taken or not a plain name: write NAME=PATH with"
                f" another NAME ({BASE!r} is the model without an adapter)."
            )
        assert each.adapter is not None
        check_adapter(each.adapter)
    return found


def shared_settings(contenders: Iterable[Contender], given: Iterable[str]) -> dict[str, Any]:
    """Return the sampler settings that the contenders' runs share, and all their prompts.

    Raises InputError if two runs differ in a setting that is not among the ``given`` ones.
    """
    runs = [each for each in contenders if each.config]
    if not runs:
        return {}
    first, *others = runs
    shared = sampling_settings(first.config)
    defaults = {each.name: each.default for each in fields(SamplingConfig)}  # of newer settings
    for other in others:
        theirs = sampling_settings(other.config)
        for key in sorted((shared.keys() | theirs.keys()) - _MAY_DIFFER - set(given)):
            if shared.get(key, defaults[key]) != theirs.get(key, defaults[key]):
                raise InputError(
                    f"{first.name} and {other.name} have different sampler settings: {flag(key)}"
                    f" {shown(shared.get(key))} and {shown(theirs.get(key))}. Compare runs with the"
                    f" same settings, or give {flag(key)}."
                )
    prompts = [prompt for run in runs for prompt in run.trained_prompts]
    return shared | {"prompts": tuple(dict.fromkeys(prompts))}


def _split(text: str, is_run: Callable[[str], bool] = lambda run: False) -> tuple[str, str]:
    """Split NAME=PATH; a run or path that exists and contains "=" needs no name.

    If there is neither, the text is returned whole, for the error.
    """

    def exists(path: str) -> bool:
        return is_run(path) or os.path.exists(at_home(path)) or path == LATEST

    name, equals, path = text.partition("=")
    if not equals or exists(text) or not exists(path):
        return "", text
    return name.strip(), path


def _newest(runs_dir: str) -> str:
    """Return the newest run that has an adapter; raises InputError if there is none."""
    files = [
        file
        for file in Path(at_home(runs_dir)).glob("*/config.toml")
        if (file.parent / "adapter" / ADAPTER_FILE).is_file()
    ]
    if not files:
        raise InputError(
            f"There is no run with an adapter in {runs_dir}. Train one with dpok train-rl, or name"
            " what to evaluate with --run or --adapter."
        )
    return str(max(files, key=lambda file: file.stat().st_mtime).parent)
