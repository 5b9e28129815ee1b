"""`dpok rewards`: the installed rewards, their options, and whether they work."""

import dataclasses
import inspect
import typing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpok_cli.display import console, tables
from dpok_cli.errors import InputError
from dpok_cli.rewards.base import RewardModel, defines
from dpok_cli.rewards.isolated import EnvironmentReward
from dpok_cli.strict_json import dumps

if TYPE_CHECKING:
    from dpok_cli.rewards.manager import Entry

app = typer.Typer(
    help="List the installed rewards, try one, or install its environment.",
    invoke_without_command=True,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: What a reward scores.
IMAGES = "each image by itself"
GROUPS = "the images of a prompt against each other"


@app.callback()
@console.results_alone()
def list_rewards(context: typer.Context, as_json: Json = False) -> None:
    """List the installed rewards, and the plugins that could not be loaded."""
    from dpok_cli.rewards.manager import registry

    if command := context.invoked_subcommand:
        if as_json:
            raise InputError(f"Put --json after {command}: dpok rewards {command} ... --json")
        return
    found = registry()
    rewards = [_facts(found.rewards[name]) for name in sorted(found.rewards)]
    if as_json:
        _say_json({"rewards": rewards, "failures": found.failures, "clashes": found.clashes})
        return
    rows = []
    for facts in rewards:
        package = f"{facts['package']} {facts['version']}"
        limits = _range(found.rewards[facts["name"]].cls.range)
        summary = facts["summary"] + (" Compares images." if facts["scores"] == GROUPS else "")
        rows.append((facts["name"], package, limits, facts["weights"], summary))
    console.show(tables.Listing(("reward", "package", "range", "weights", "description"), rows))
    for line in found.left_out():
        console.say(line)


@app.command("show")
@console.results_alone()
def show(
    name: Annotated[str, typer.Argument(help="The reward's name.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show what a reward is, and its options with their types and defaults."""
    from dpok_cli.rewards.manager import registry

    reward = registry().get(name)
    description, options = inspect.getdoc(reward), _options(reward)
    about_options = inspect.getdoc(reward.Options) if options else None
    needed = _needed(reward)
    example = f":{','.join(f'{key}=...' for key in needed)}" if needed else ""
    if as_json:
        about = {"description": description, "options": options, "about_options": about_options}
        _say_json(_facts(registry().rewards[name]) | about)
        return
    console.say(f"{name}\n\n{description}\n", console.out)
    better = "higher is better" if reward.higher_is_better else "lower is better"
    console.say(f"Range: {_range(reward.range)}; {better}.", console.out)
    console.say(f"Scores {_scores(reward)}.", console.out)
    console.say(f"Weights: {_weights(reward)}", console.out)
    if issubclass(reward, EnvironmentReward):
        console.say(f"Environment: {_environment(reward)}", console.out)
    for key, option in options.items():
        default = "required" if option["required"] else f"default {option['default']!r}"
        console.say(f"Option {key} ({option['type']}, {default})", console.out)
    if options:
        console.say(f"\n{about_options}", console.out)
    console.say(f"\nUse it with: --reward {name}{example}", console.out)


@app.command("check")
@console.results_alone()
def check(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="The reward's name; options may follow, as in --reward.",
            show_default=False,
        ),
    ],
    device: Annotated[str, typer.Option(help="Where to score: auto, cpu, cuda, ...")] = "auto",
    as_json: Json = False,
) -> None:
    """Load a reward, score two pictures, and measure its speed and memory."""
    from dpok_cli.rewards.manager import build, check_specs

    check_specs([spec])
    from dpok_cli.engine.distributed import device_of
    from dpok_cli.rewards import check as trial

    ((reward, _),) = build([spec], device_of(device)).rewards.values()
    result = trial.check(reward)
    if as_json:
        where = {"reward": spec, "device": str(reward.device), "image_size": trial.SIZE}
        _say_json(where | dataclasses.asdict(result))
        return
    gradient, noise = result.scores
    compared = ", against each other" if reward.compares else ""
    size = f"{trial.SIZE} x {trial.SIZE} pixels"
    for line in (
        f"{spec} works on {reward.device}.",
        f"Loaded in {result.load_seconds:.1f} s.",
        f"Scores: {gradient:.4f} for a colour gradient, {noise:.4f} for noise{compared}.",
        f"Speed: {result.images_per_second:.1f} images/s, {result.batch_size} at a time of {size}.",
        f"Peak memory: {result.peak_memory / 1e9:.2f} GB.",
    ):
        console.say(line, console.out)


@app.command("install")
@console.results_alone()
def install(
    name: Annotated[str, typer.Argument(help="The reward's name.", show_default=False)],
    python: Annotated[
        str | None,
        typer.Option(
            help="The Python to build it with, if dpok finds none of a version that will do.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build the environment of a reward whose libraries cannot be installed beside dpok's."""
    from dpok_cli.engine.runs.files import make_folder
    from dpok_cli.engine.runs.lock import one_writer
    from dpok_cli.inputs import CACHE
    from dpok_cli.rewards.install import LOG, interpreter
    from dpok_cli.rewards.install import install as build
    from dpok_cli.rewards.manager import registry

    reward = registry().get(name)
    if not issubclass(reward, EnvironmentReward):
        raise InputError(f"Reward {name!r} needs no environment of its own: use it as it is.")
    environment, folder = reward.environment, reward.environment.folder(name)
    make_folder(folder.parent, f"folder in {CACHE}")
    with one_writer(folder.parent, folder.name):
        if not environment.is_here(name):
            found = interpreter(name, environment, python)
            console.say(f"Building {folder}; what pip says is in its {LOG}.")
            build(name, environment, found)
    console.say(f"{name} is installed in {folder}", console.out)


def _facts(entry: "Entry") -> dict[str, Any]:
    """Return a reward's properties for a table or JSON."""
    reward = entry.cls
    limits = reward.range
    return {
        "name": reward.name,
        "package": entry.package,
        "version": entry.version,
        "summary": _summary(reward),
        "range": limits and list(limits),
        "higher_is_better": reward.higher_is_better,
        "differentiable": reward.differentiable,
        "scores": _scores(reward),
        "weights": _weights(reward),
        "environment": _about_environment(reward),
    }


def _about_environment(reward: type[RewardModel]) -> dict[str, Any] | None:
    """Return what the environment of a reward needs, where it belongs, and whether it is there."""
    if not issubclass(reward, EnvironmentReward):
        return None
    needs, folder = dataclasses.asdict(reward.environment), reward.environment.folder(reward.name)
    return needs | {"folder": str(folder), "is_here": reward.environment.is_here(reward.name)}


def _environment(reward: type[EnvironmentReward]) -> str:
    if reward.environment.is_here(reward.name):
        return str(reward.environment.folder(reward.name))
    return f"not installed: dpok rewards install {reward.name}"


def _scores(reward: type[RewardModel]) -> str:
    """Return what a reward scores: images, or groups of them."""
    if not defines(reward, "score_group"):
        return IMAGES
    return f"{IMAGES}, or {GROUPS}" if defines(reward, "score_batch") else GROUPS


def _options(reward: type[RewardModel]) -> dict[str, dict[str, Any]]:
    """Return each option's type, default (None if there is none) and whether it is required."""
    types, needed = typing.get_type_hints(reward.Options), _needed(reward)
    result = {}
    for option in dataclasses.fields(reward.Options):
        required, default = option.name in needed, option.default
        if default is dataclasses.MISSING:
            factory = option.default_factory
            default = None if factory is dataclasses.MISSING else factory()
        kind = inspect.formatannotation(types[option.name])
        result[option.name] = {"type": kind, "default": default, "required": required}
    return result


def _say_json(result: Any) -> None:
    console.say(dumps(result, indent=2, default=str), console.out)


def _weights(reward: type[RewardModel]) -> str:
    """Report whether what a reward reads by default is on this machine; first its environment."""
    from dpok_cli.rewards.manager import local_files

    if issubclass(reward, EnvironmentReward) and not reward.environment.is_here(reward.name):
        return "no environment"
    if reward.files is RewardModel.files:
        return "none needed"
    if needed := _needed(reward):
        return f"by {needed[0]}="
    if local_files(reward) is not None:
        return "here"
    return "not here (model=tiny is)" if reward.has_tiny else "not here"


def _needed(reward: type[RewardModel]) -> list[str]:
    """Return the options without a default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(reward.Options)
    return [each.name for each in fields if each.default is each.default_factory is missing]


def _range(limits: tuple[float, float] | None) -> str:
    return f"{limits[0]:g} to {limits[1]:g}" if limits else "any"


def _summary(reward: type) -> str:
    return (inspect.getdoc(reward) or "").partition("\n")[0]
