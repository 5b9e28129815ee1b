"""What a command of a soak leaves in its folders and on stdout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soak.world import Command, config_of, is_trained, records


def complete(run: Path, command: str, length: int) -> Iterator[str]:
    """Yield what a run that ended well lacks; a ``length`` of 0 is any."""
    unit = "round" if command == "train-rl" else "step"
    numbers = [record[unit] for record in records(run / "metrics.jsonl")]
    if not numbers or numbers != list(range(1, (length or len(numbers)) + 1)):
        yield f"metrics.jsonl has {unit}s {numbers}, not 1 to {length or 'the last'}"
    for name in ("summary.json", "config.toml", "run.json", "adapter/README.md"):
        if not (run / name).is_file():
            yield f"there is no {name}"
    if not is_trained(run):
        yield "there is no adapter"


def may_have_ended(run: Path) -> bool:
    """Whether patience may have ended a run: it has more sample grids than that."""
    patience = (config_of(run) or {}).get("patience", 0)
    grids = ["grid/reward" in record for record in records(run / "metrics.jsonl")]
    return 0 < patience < sum(grids)


def results(done: Command, start: str, end: str = "") -> Iterator[str]:
    """Yield that stdout lacks the line of its result, or names a file that is not there."""
    if done.action.streams.out:
        return
    for line in done.out.splitlines():
        if line.startswith(start) and line.endswith(end):
            return
    yield f"stdout names no result: {done.out[-200:]!r}"


def is_no_text(text: str) -> bool:
    """Whether it holds bytes that were no UTF-8."""
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def is_filled(folder: Path) -> bool:
    """Whether there is a folder with files, but for a lock that a killed command left."""
    if not os.path.isdir(folder):  # unlike `Path.is_dir`, no error for a name that is too long
        return False
    return any(not name.startswith(".lock") for name in os.listdir(folder))


def is_set_of(settings: dict[str, Any], folder: Path) -> bool:
    """Whether an image set was drawn for a run with these settings."""
    try:
        made = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return made.get("prompts") == list(settings["prompts"])
