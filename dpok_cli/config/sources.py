"""Where settings come from: presets and config files (TOML), and what overrides them.

A file may be flat, as `to_toml` writes it. Or it has settings for every command at the top, a table
such as ``[train-rl]`` for those of one command, and ``preset = "sd15"`` to build on a preset.
Presets are such files too. A setting has the name of its field.
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dpok_cli.config.fields import BaseConfig, settings_of
from dpok_cli.config.sampling import TINY
from dpok_cli.errors import InputError, suggest
from dpok_cli.inputs import read_text

#: The preset files; a preset is named as its file. TINY has none: it is the fields' defaults.
PRESETS = Path(__file__).parent / "presets"

#: The commands that have settings, and so a table in config files.
COMMANDS = ("train-rl", "train-sft", "sample", "evaluate")
#: Those of them that take a run's own settings by --run.
WITH_RUN = ("sample", "evaluate")

Config = TypeVar("Config", bound=BaseConfig)


def resolve(
    kind: type[Config],
    preset: str = TINY,
    file: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    **flags: Any,
) -> Config:
    """Make a config: the flags that are not None override the file, which overrides the preset.

    The preset overrides the ``defaults``, which are in place of the fields' own.

    Raises InputError for an unknown preset or setting, a wrong type or a value out of range.
    """
    values = preset_values(kind, preset) | (_read(kind, file) if file else {})
    return kind(
        **{**(defaults or {}), **values}
        | {key: value for key, value in flags.items() if value is not None}
    )


def presets(kind: type[BaseConfig]) -> list[str]:
    """Return the presets of a command: those with settings for every command, or a table for it."""
    files = sorted(PRESETS.glob("*.toml"))
    return [TINY, *(file.stem for file in files if _is_for(kind, _parse(file)))]


def preset_values(kind: type[BaseConfig], name: str) -> dict[str, Any]:
    """Return what a preset sets for a command; raises InputError if it has none."""
    if name not in (known := presets(kind)):
        raise InputError(
            f"There is no preset {name!r} for {kind.command}.{suggest(str(name), known)}"
        )
    return {} if name == TINY else _read(kind, PRESETS / f"{name}.toml")


def to_toml(config: BaseConfig) -> str:
    """Write a config as TOML that `resolve` reads back to an equal one."""
    import tomli_w

    return tomli_w.dumps(dataclasses.asdict(config))


def _read(kind: type[BaseConfig], file: Path) -> dict[str, Any]:
    """Return a command's settings in a file, over those of the presets that it builds on."""
    values: dict[str, Any] = {}
    for layer in _layers(kind, file):
        values = layer | values
    return values


def _layers(kind: type[BaseConfig], file: Path) -> Iterator[dict[str, Any]]:
    """Yield a file's settings, then those of its preset, then those of the preset's preset."""
    seen: list[str] = []
    while True:
        content = _parse(file)
        name = content.pop("preset", TINY)
        yield _settings(kind, content, file)
        if name == TINY:
            return
        if name not in (known := presets(kind)):
            raise InputError(
                f"{file}: there is no preset {name!r} for {kind.command}."
                f"{suggest(str(name), known)}"
            )
        if name in seen:
            raise InputError(f"{file}: the presets form a cycle: {' -> '.join([*seen, name])}.")
        seen.append(name)
        file = PRESETS / f"{name}.toml"


def _settings(kind: type[BaseConfig], content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the settings of a parsed file that are for a command; raises InputError."""
    known = settings_of(kind)
    top = {key: value for key, value in content.items() if key not in COMMANDS}
    own = content.get(kind.command, {})
    for command in content.keys() - top.keys():
        if not isinstance(content[command], dict):
            raise InputError(f"{file}: {command} must be a table: [{command}].")
    for key, value in (top | own).items():
        if key in known:
            continue
        if isinstance(value, dict):
            raise InputError(f"{file}: there is no table [{key}].{suggest(key, COMMANDS)}")
        if kind.command in WITH_RUN and file.with_name("metrics.jsonl").exists():
            raise InputError(f"{file} has the settings of a training: give --run {file.parent}.")
        raise InputError(f"{file}: there is no setting {key!r}.{suggest(key, known)}")
    return top | own


def _is_for(kind: type[BaseConfig], content: dict[str, Any]) -> bool:
    return kind.command in content or bool(content.keys() - {*COMMANDS, "preset"})


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(file, "the config file "))
    except (ValueError, RecursionError) as error:  # too many digits, too deep
        raise InputError(f"{file} is not TOML: {error}.") from error
