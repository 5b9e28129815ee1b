"""An environment of its own for a reward: what it needs, where it is, and whether it is there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dpok_cli.errors import InputError
from dpok_cli.inputs import cache_folder

#: Written last: an environment without it is not complete.
MARKER = "environment.json"


@dataclass(frozen=True)
class Environment:
    """A virtual environment for a reward whose libraries cannot be installed beside dpok's.

    ``requirements`` are as pip takes them. ``python`` are the versions of Python that will do, as
    "3.11", the best first; none means dpok's own. ``shared`` are packages that are not installed
    but taken from dpok's environment, with those that they need, where it has them and its Python
    is of the same version.
    """

    requirements: Sequence[str] = ()
    python: Sequence[str] = ()
    shared: Sequence[str] = ()

    def folder(self, reward: str) -> Path:
        """Return where the environment of a reward belongs; other needs make another folder."""
        needs: list[object] = [list(self.requirements), list(self.python)]
        if self.shared or not self.python:
            needs += [python_version(), sys.prefix, self.shared_versions()]
        digest = sha256(json.dumps(needs).encode()).hexdigest()[:12]
        return cache_folder() / "environments" / f"{reward}-{digest}"

    def shared_versions(self) -> dict[str, str]:
        """Return the versions of those ``shared`` packages that dpok's environment has."""
        from importlib.metadata import PackageNotFoundError, version

        found = {}
        for name in self.shared:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found

    def is_here(self, reward: str) -> bool:
        folder = self.folder(reward)
        return (folder / MARKER).is_file() and python_in(folder).exists()

    def check(self, reward: str) -> None:
        """Raise InputError, which names the command that installs it, unless it is here."""
        if not self.is_here(reward):
            raise InputError(
                f"Reward {reward!r} needs an environment of its own, which is not installed:"
                f" dpok rewards install {reward}"
            )


def python_in(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_version() -> str:
    """Return the version of dpok's own Python, as "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
