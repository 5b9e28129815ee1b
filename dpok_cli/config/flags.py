"""Command-line flags: those of a config made from its fields, and those that commands share."""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import typer

from dpok_cli import config
from dpok_cli.config import TINY, Config, SamplingConfig
from dpok_cli.config.fields import Panel, Setting, flag, settings_of, shown
from dpok_cli.config.sources import preset_values
from dpok_cli.errors import InputError
from dpok_cli.inputs import at_home
from dpok_cli.prompts.files import PromptFile

#: The panels of the help, in their order there.
PANELS = typing.get_args(Panel)

#: The most seeds of one command; guards against typing errors.
MAX_SEEDS = 100_000

Preset = Annotated[
    str | None,
    typer.Option(
        help="Preset to start from: tiny, sd15, sdxl, sd35, flux, or another of this command's.",
        rich_help_panel="Run",
        metavar="NAME",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file of settings that override the preset.",
        rich_help_panel="Run",
        metavar="FILE",
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config", help="Print all settings as TOML and exit.", rich_help_panel="Run"
    ),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Print the memory that each phase will need, from the model's configuration alone,"
        " and exit.",
        rich_help_panel="Run",
    ),
]
PromptsFile = Annotated[
    PromptFile | None,
    typer.Option(
        "--prompts",
        parser=PromptFile,
        help="Prompts file: one prompt per line, CSV, TSV, JSON, JSON lines or Parquet; or"
        " hf:DATASET[:SPLIT[:COLUMN]]. `dpok prompts FILE` shows what it is understood as.",
        rich_help_panel="Prompts",
        metavar="FILE",
    ),
]
PromptColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the prompts file that has the prompts. Default: prompt, prompts, text or"
        " caption.",
        rich_help_panel="Prompts",
        metavar="NAME",
    ),
]
Category = Annotated[
    str | None,
    typer.Option(
        help="Use only this category of the prompts file: a value of its column category, tag or"
        " challenge.",
        rich_help_panel="Prompts",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print only results and errors.", rich_help_panel="Run")
]
Resume = Annotated[
    str | None,
    typer.Option(
        help="Resume a run with its own settings: its folder, its name, or 'latest'.",
        rich_help_panel="Run",
        metavar="RUN",
    ),
]

Command = TypeVar("Command", bound=Callable[..., Any])


def config_flags(
    kind: type[SamplingConfig], without: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """Give a command a flag for each field of a config, in place of its ``**flags``.

    A flag that is not given is None, and leaves its setting to the preset or the config file. In
    paths, ~ is replaced by the home folder.
    """

    def decorate(command: Command) -> Command:
        declared = inspect.signature(command).parameters.values()
        types = typing.get_type_hints(kind)
        paper = preset_values(kind, "sd15")
        parameters = [each for each in declared if each.kind is not each.VAR_KEYWORD] + [
            _parameter(name, known, types[name], _defaults(kind, name, types[name], paper))
            for name, known in settings_of(kind).items()
            if name not in without
        ]
        parameters.sort(key=_order)

        @functools.wraps(command)
        def with_paths(**given: Any) -> Any:
            return command(**{name: _at_home(value) for name, value in given.items()})

        with_paths.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return cast(Command, with_paths)

    return decorate


def resolve(
    kind: type[Config],
    flags: dict[str, Any],
    *,
    preset: str | None,
    file: Path | None,
    prompts_file: PromptFile | None,
    category: str | None,
    under: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
) -> Config:
    """Make a command's config; raises InputError.

    Flags override ``under``, which overrides the config file, which overrides the preset, which
    overrides the ``defaults``.
    """
    given = _given(flags)
    if prompts_file is not None:
        given["prompts"] = [*given.get("prompts", ()), *prompts_file.prompts(category)]
    elif category is not None:
        raise InputError("--category needs --prompts FILE, whose category it is.")
    return config.resolve(kind, preset or TINY, file, defaults, **(under or {}) | given)


#: These may change on resuming if their product, the examples of an update, does not.
_PRODUCT = ("batch_size", "gradient_accumulation")


def resume(kind: type[Config], flags: dict[str, Any], config_file: Path) -> Config:
    """Read the settings of a run that is resumed, and override those that may change by flags.

    Raises InputError for a flag that would change what the run computes.
    """
    settings: Any = config.resolve(kind, TINY, config_file)
    if not settings.prompts:
        raise InputError(f"{config_file} names no prompts, so no run wrote it: start a new run.")
    given = _given(flags)
    changed = kind(**vars(settings) | given)
    sizes = [[getattr(each, key) for key in _PRODUCT] for each in (settings, changed)]
    free = [name for name, known in settings_of(kind).items() if known.may_change]
    product = _PRODUCT if prod(sizes[0]) == prod(sizes[1]) else ()
    for key in given:
        old, new = getattr(settings, key), getattr(changed, key)
        if key not in (*free, *product) and new != old:
            raise InputError(
                f"{flag(key)} {shown(new)}: it is {shown(old)} in {config_file}, and cannot change"
                f" when a run is resumed; only {', '.join(map(flag, free))} can, and"
                f" {' and '.join(map(flag, _PRODUCT))} if their product stays {prod(sizes[0])}."
            )
    return changed


def parse_seeds(text: str) -> list[int]:
    """Read seeds as in ``0-15`` or ``0,3,8-11``; raises InputError."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,99})\s*(?:-\s*(\d{1,99})\s*)?", part)
        if not match:
            raise InputError(f"--seeds {text!r}: write seeds as in 0-15 or 0,3,7.")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise InputError(f"--seeds {text!r} runs backwards: write {last}-{first}.")
        if last >= 2**63 or last - first >= MAX_SEEDS:
            raise InputError(f"--seeds {text!r}: at most {MAX_SEEDS} seeds below 2^63.")
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text!r} names a seed twice.")
    return seeds


def _at_home(value: Any) -> Any:
    """Return a flag's value with ~ replaced in paths; a shell leaves it in --output=~/x."""
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return at_home(value) if isinstance(value, Path) else value


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given; a repeatable flag that was not given is empty."""
    return {key: value for key, value in flags.items() if value not in (None, [])}


def _parameter(name: str, known: Setting, of: Any, default: str) -> inspect.Parameter:
    metavar = known.metavar
    if typing.get_origin(of) is Literal:
        metavar, of = metavar or "|".join(typing.get_args(of)), str
    elif typing.get_origin(of) is tuple:
        of = list[str]
    typed = (known.flag or name).replace("_", "-")
    option = typer.Option(
        f"--{typed}/--no-{typed}" if of is bool else f"--{typed}",
        help=known.help,
        show_default=default or False,
        rich_help_panel=known.panel,
        metavar=metavar,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[of | None, option],
    )


def _defaults(kind: type, name: str, of: Any, paper: dict[str, Any]) -> str:
    """Write a setting's default, and that of the paper's preset if it is another."""
    default = getattr(kind, name)
    values = [default]
    # Texts and lists would be too long.
    if of is not str and not isinstance(default, tuple) and paper.get(name, default) != default:
        values.append(paper[name])
    texts = [" ".join(value) if isinstance(value, tuple) else str(value) for value in values]
    return "; sd15: ".join(texts).replace("False", "off").replace("True", "on")


def _order(parameter: inspect.Parameter) -> int:
    """Return the place of a flag's panel in the help; arguments come before all flags."""
    panel = parameter.annotation.__metadata__[0].rich_help_panel
    return PANELS.index(panel) if panel else -1
