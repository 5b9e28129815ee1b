"""`dpok rewards`: what rewards there are, what one can be told, and whether it works."""

import dataclasses
import inspect
import typing
from typing import Annotated

import typer
from rich.table import Table

from dpok_cli import console
from dpok_cli.rewards.base import RewardModel

app = typer.Typer(
    help="List the rewards that are installed, and try one out.", invoke_without_command=True
)


@app.callback()
def list_rewards(context: typer.Context) -> None:
    """List the rewards that are installed, and the plugins that could not be loaded."""
    from dpok_cli.rewards.manager import registry

    if context.invoked_subcommand is not None:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("reward", "package", "range", "weights", "what it is"):
        table.add_column(column)
    found = registry()
    for name, entry in sorted(found.rewards.items()):
        table.add_row(
            name,
            f"{entry.package} {entry.version}",
            _range(entry.cls.range),
            _weights(entry.cls),
            _summary(entry.cls),
        )
    console.out.print(table)
    for plugin, why in found.failures.items():
        console.say(f"Left out: {plugin}: {why}")
    for name, packages in found.clashes.items():
        console.say(f"Left out: {name!r}, which {' and '.join(packages)} both claim")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="The reward's name.", show_default=False)],
) -> None:
    """Show what a reward is, and its options with their types and defaults."""
    from dpok_cli.rewards.manager import registry

    reward = registry().get(name)
    console.say(f"{name}\n\n{inspect.getdoc(reward)}\n", console.out)
    better = "higher is better" if reward.higher_is_better else "lower is better"
    console.say(f"Range: {_range(reward.range)}; {better}.", console.out)
    console.say(f"Weights: {_weights(reward)}", console.out)
    types = typing.get_type_hints(reward.Options)
    needed = _needed(reward)
    for option in dataclasses.fields(reward.Options):
        default = "must be given" if option.name in needed else f"default {option.default!r}"
        kind = inspect.formatannotation(types[option.name])
        console.say(f"Option {option.name} ({kind}, {default})", console.out)
    if types:
        console.say(f"\n{inspect.getdoc(reward.Options)}", console.out)
    example = f":{','.join(f'{key}=...' for key in needed)}" if needed else ""
    console.say(f"\nUse it with: --reward {name}{example}", console.out)


@app.command("check")
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
) -> None:
    """Load a reward, score two pictures, and measure its speed and memory."""
    from dpok_cli.rewards.manager import build

    build([spec])  # what can be refused without torch is refused before it is imported
    from dpok_cli.engine.device import device_of
    from dpok_cli.rewards import check as trial

    ((reward, _),) = build([spec], device_of(device)).rewards.values()
    result = trial.check(reward)
    gradient, noise = result.scores
    size = f"{trial.SIZE} x {trial.SIZE} pixels"
    for line in (
        f"{spec} works on {reward.device}.",
        f"Loaded in {result.load_seconds:.1f} s.",
        f"Scores: {gradient:.4f} for a colour gradient, {noise:.4f} for noise.",
        f"Speed: {result.images_per_second:.1f} images/s, {result.batch_size} at a time of {size}.",
        f"Peak memory: {result.peak_memory / 1e9:.2f} GB.",
    ):
        console.say(line, console.out)


def _weights(reward: type[RewardModel]) -> str:
    """Say whether the files that a reward reads by default are on this machine."""
    if reward.files is RewardModel.files:
        return "none needed"
    if needed := _needed(reward):
        return f"by {needed[0]}="
    try:
        files = reward().files(local_only=True)
    except Exception:  # of whatever kind: it is a plugin's
        return "not here"
    return "here" if all(file.exists() for file in files) else "not here"


def _needed(reward: type[RewardModel]) -> list[str]:
    """Return the options without a default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(reward.Options)
    return [each.name for each in fields if each.default is each.default_factory is missing]


def _range(limits: tuple[float, float] | None) -> str:
    return f"{limits[0]:g} to {limits[1]:g}" if limits else "any"


def _summary(reward: type) -> str:
    return (inspect.getdoc(reward) or "").partition("\n")[0]
