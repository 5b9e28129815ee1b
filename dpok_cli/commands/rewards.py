"""`dpok rewards`: what rewards there are, and what one can be told."""

import dataclasses
import inspect
import typing
from typing import Annotated

import typer
from rich.table import Table

from dpok_cli import console

app = typer.Typer(help="List the rewards that are installed.", invoke_without_command=True)


@app.callback()
def list_rewards(context: typer.Context) -> None:
    """List the rewards that are installed, and the plugins that could not be loaded."""
    from dpok_cli.rewards.manager import registry

    if context.invoked_subcommand is not None:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("reward", "package", "range", "what it is"):
        table.add_column(column)
    found = registry()
    for name, entry in sorted(found.rewards.items()):
        table.add_row(
            name, f"{entry.package} {entry.version}", _range(entry.cls.range), _summary(entry.cls)
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
    types = typing.get_type_hints(reward.Options)
    needed = []
    for option in dataclasses.fields(reward.Options):
        default = f"default {option.default!r}"
        if option.default is dataclasses.MISSING:
            default = "must be given"
            needed.append(option.name)
        kind = inspect.formatannotation(types[option.name])
        console.say(f"Option {option.name} ({kind}, {default})", console.out)
    if types:
        console.say(f"\n{inspect.getdoc(reward.Options)}", console.out)
    example = f":{','.join(f'{key}=...' for key in needed)}" if needed else ""
    console.say(f"\nUse it with: --reward {name}{example}", console.out)


def _range(limits: tuple[float, float] | None) -> str:
    return f"{limits[0]:g} to {limits[1]:g}" if limits else "any"


def _summary(reward: type) -> str:
    return (inspect.getdoc(reward) or "").partition("\n")[0]
