"""Builds the environment of a reward: a virtual environment, shared packages, pip's packages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from dpok_cli.errors import InputError, RewardError
from dpok_cli.rewards.environment import MARKER, Environment, python_in, python_version

LOG = "install.log"


def install(reward: str, environment: Environment, python: Path) -> None:
    """Build the environment of a reward in its folder, with the interpreter ``python``.

    What an earlier attempt left there is removed, and a marker is written last. Everything that
    venv and pip say is in install.log. Raises RewardError with pip's last errors.
    """
    folder = environment.folder(reward)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip: list[str] = [] if environment.requirements else ["--without-pip"]
    _run(reward, folder, [python, "-I", "-m", "venv", *pip, folder / "venv"])
    own = python_in(folder)
    if version_of(own) == python_version():
        _share(folder, environment)
    if environment.requirements:
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
        constraints = folder / "constraints.txt"
        if constraints.exists():
            options += ["-c", str(constraints)]
        _run(
            reward, folder, [own, "-I", "-m", "pip", "install", *options, *environment.requirements]
        )
    about = {"python": version_of(own), "requirements": list(environment.requirements)}
    (folder / f"{MARKER}.tmp").write_text(json.dumps(about, indent=2), encoding="utf-8")
    os.replace(folder / f"{MARKER}.tmp", folder / MARKER)


def interpreter(reward: str, environment: Environment, given: str | None = None) -> Path:
    """Return a Python of a version that will do: ``given``, dpok's own, or one on the path.

    Raises InputError if there is none.
    """
    accepted = environment.python or (() if given else (python_version(),))
    if given:
        names = [given]
    else:  # dpok's own first: packages can be shared with it
        ordered = sorted(accepted, key=lambda each: each != python_version())
        names = [sys.executable if v == python_version() else f"python{v}" for v in ordered]
    for name in names:
        path = shutil.which(name)
        if path and (found := version_of(Path(path))) and (found in accepted or not accepted):
            return Path(path)
    wanted = f"Python {' or '.join(accepted)}" if accepted else "a Python"
    there = f"{given} is none" if given else "none is on the path"
    raise InputError(
        f"The environment of {reward!r} needs {wanted}, and {there}: install one, or name its"
        " interpreter with --python PATH."
    )


def version_of(python: Path) -> str | None:
    """Return the version of an interpreter, as "3.11", or None if it does not run."""
    return _answer(python, "import sys; print('%d.%d' % sys.version_info[:2])")


def _share(folder: Path, environment: Environment) -> None:
    """Link the shared packages into a folder on the environment's path.

    That folder is outside the virtual environment, so that pip, which sees the packages as
    installed, never removes their files. Where links cannot be made, nothing is shared.
    """
    shared = folder / "shared"
    shared.mkdir()
    try:
        for package in _with_requirements(environment.shared):
            for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                link, target = shared / name, Path(str(package.locate_file(name)))
                if not link.is_symlink():  # packages may have a folder together
                    link.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:  # on Windows they need a right
        shutil.rmtree(shared)
        return
    site = _answer(python_in(folder), "import sysconfig; print(sysconfig.get_path('purelib'))")
    Path(site or "", "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    lines = [
        f"{name}=={version.partition('+')[0]}\n"
        for name, version in environment.shared_versions().items()
    ]
    (folder / "constraints.txt").write_text("".join(lines), encoding="utf-8")


def _with_requirements(names: Sequence[str]) -> list[Distribution]:
    """Return the packages of these names that are installed, and what they require in turn."""
    found: dict[str, Distribution | None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = package = distribution(name)
        except PackageNotFoundError:
            found[key] = None
            continue
        for line in package.requires or ():
            if "extra ==" not in line and (match := re.match(r"[\w.-]+", line)):
                waiting.append(match[0])
    return [package for package in found.values() if package]


def _answer(python: Path, code: str) -> str | None:
    """Return what code prints, or None if the interpreter does not run it."""
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _run(reward: str, folder: Path, command: Sequence[str | Path]) -> None:
    log = folder / LOG
    with log.open("ab") as output:
        code = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        ).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        last = ([line for line in lines if line.startswith("ERROR: ")] or lines)[-2:]
        raise RewardError(
            f"The environment of {reward!r} could not be built: {' '.join(last)} (all of it is in"
            f" {log})"
        )
