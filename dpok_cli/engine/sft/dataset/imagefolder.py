"""Image folders in Hugging Face's layout: a metadata.jsonl beside images. Read without torch.

Each line is a JSON object with ``file_name`` and the prompt as ``text`` (or ``prompt``). A folder
that dpok filled has a ``settings.json`` too; one without is the user's, and is only read.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import normalize

from dpok_cli.engine.runs.lock import is_free
from dpok_cli.errors import InputError
from dpok_cli.inputs import check_image, is_unicode, read_text

METADATA, SETTINGS = "metadata.jsonl", "settings.json"

Entry = dict[str, Any]


def check_dataset(folder: Path) -> None:
    """Raise InputError unless images can be read from the folder, or kept in it."""
    if not folder.exists():
        return
    if (folder / SETTINGS).is_file():
        read_settings(folder)
    elif is_own(folder):
        for entry in own_entries(folder):
            check_image(folder / entry["file_name"])
    elif not is_free(folder):
        raise InputError(
            f"{folder} is no image set: it has no {METADATA}. Give --dataset a new folder, one that"
            " an earlier run filled, or images with that file."
        )


def is_own(folder: Path) -> bool:
    """Whether the folder is the user's, which dpok only reads."""
    return (folder / METADATA).is_file() and not (folder / SETTINGS).exists()


def own_entries(folder: Path) -> list[Entry]:
    """Return the lines of the user's folder; raises InputError for one that cannot be used."""
    file = folder / METADATA
    entries = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        entry = parse(line)
        if entry is None:
            raise InputError(f"{where}: not a JSON object.")
        name, prompt = entry.get("file_name"), entry.get("text", entry.get("prompt"))
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: it has no file_name.")
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{where}: it has no prompt, as text or prompt.")
        for value in (name, prompt):
            if not is_unicode(value):
                raise InputError(f"{where}: the text {value!r} is not valid Unicode.")
        entries.append({"file_name": _file_name(folder, name, where), "text": prompt})
    if not entries:
        raise InputError(f"{file} names no image.")
    return entries


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what made a set that dpok drew; raises InputError if that cannot be read."""
    file = folder / SETTINGS
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}. Give another --dataset.") from error
    return settings


def parse(line: str) -> Entry | None:
    """Return the JSON object in a line; None for anything else, such as a truncated line."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _file_name(folder: Path, name: str, where: str) -> str:
    """Return a name of a file in the folder as this system writes it; raises InputError."""
    for written in _spellings(name):
        path = Path(written)
        if path.anchor or ".." in path.parts:
            raise InputError(f"{where}: file_name {name!r} leads out of the folder.")
        if os.path.isfile(folder / path):  # Path.is_file raises for a name that is too long
            return written
    raise InputError(f"{where}: there is no file {folder / name}.")


def _spellings(name: str) -> Iterator[str]:
    r"""Yield a name as given, and as Windows (with \) and macOS (accents apart) write it."""
    for separated in (name, name.replace("\\", "/")):
        yield from (separated, normalize("NFC", separated), normalize("NFD", separated))
