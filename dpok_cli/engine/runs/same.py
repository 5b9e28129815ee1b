"""Whether a folder was made with the same settings: then it is continued, else it is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpok_cli.config.fields import typed
from dpok_cli.errors import InputError
from dpok_cli.strict_json import dumps


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object that dpok wrote; raises InputError, which names ``file``."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert isinstance(found, dict), "it holds no object"
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}. Give another --output.") from error
    return found


def check_same(path: Path, there: Mapping[str, Any], now: Mapping[str, Any], kind: type) -> None:
    """Raise InputError unless a folder's settings are those of ``now``; it names one that differs.

    Both are in JSON's types; ``kind`` is the command's config, whose flags the message names.
    """
    for key in sorted(there.keys() | now.keys()):
        if there.get(key) != now.get(key):
            raise InputError(
                f"{path} was made with other settings:"
                f" {typed(key, kind, _short(there.get(key)))} there,"
                f" {_short(now.get(key))} now. Give another --output."
            )


def _short(value: Any) -> str:
    text = dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
