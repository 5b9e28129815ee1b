"""What the numbers in a folder were made with: libraries, and rewards with versions and options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpok_cli.engine.runs.files import write_text
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.manager import provider
from dpok_cli.rewards.spec import spec_of
from dpok_cli.strict_json import dumps

FILE = "versions.json"
LIBRARIES = "dpok torch diffusers transformers peft".split()


def note_versions(folder: Path, reward: WeightedReward, warn: Callable[[str], None]) -> None:
    """Write versions.json of a folder; ``warn`` gets a line on each reward that has changed in it.

    It has "libraries", versions by name, and "rewards" by spec: "package", "version" and all
    "options", also those with their defaults. What an earlier dpok left without it is not compared.
    """
    then, now = _read(folder / FILE), versions(reward)
    for spec, one in now["rewards"].items():
        if changes := _reward_changes(then["rewards"].get(spec, one), one):
            warn(
                f"Reward {spec} has changed since {folder} was last used: {', '.join(changes)}."
                " Scores from before stay as they are."
            )
    if changes := _changes(then["libraries"], now["libraries"]):
        warn(f"Libraries have changed since {folder} was last used: {', '.join(changes)}.")
    now["rewards"] = then["rewards"] | now["rewards"]
    write_text(folder / FILE, dumps(now, indent=2) + "\n")


def versions(reward: WeightedReward) -> dict[str, dict[str, Any]]:
    """Return what versions.json holds of these rewards, in JSON's types."""
    rewards = {}
    for one, _ in reward.rewards.values():
        package, of_package = provider(type(one))
        options = dataclasses.asdict(one.options)
        rewards[spec_of(one)] = {"package": package, "version": of_package, "options": options}
    found = {"libraries": {name: _version(name) for name in LIBRARIES}, "rewards": rewards}
    return json.loads(dumps(found, default=str))


def _reward_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    packages = [f"{one['package']} {one['version']}" for one in (then, now)]
    changed = [] if packages[0] == packages[1] else [f"{packages[0]} is now {packages[1]}"]
    return changed + _changes(then["options"], now["options"])


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what has another value than before, or is new or gone."""
    return [
        f"{key} {then.get(key, '(absent)')} is now {now.get(key, '(absent)')}"
        for key in [*now, *(key for key in then if key not in now)]
        if then and (key not in then or key not in now or then[key] != now[key])
    ]


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Return an earlier versions.json; empty ones if there is none, or a damaged one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        for one in found["rewards"].values():
            _ = one["package"], one["version"], one["options"].items()
        return {key: dict(found[key]) for key in ("libraries", "rewards")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"libraries": {}, "rewards": {}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
