"""`dpok prompts`: what a prompts file is understood as."""

from collections import Counter
from typing import Annotated

import typer

from dpok_cli.commands import _prompts
from dpok_cli.config import flags as options
from dpok_cli.display import console, tables
from dpok_cli.prompts.files import PromptFile
from dpok_cli.strict_json import dumps

#: How many prompts are shown, each in one line.
FIRST = 10
ENDS = {ord("\n"): r"\n", ord("\r"): r"\r"}

File = Annotated[
    PromptFile,
    typer.Argument(parser=PromptFile, help="The file.", metavar="FILE", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print all prompts as JSON.")]


def prompts(
    file: File,
    *,
    prompt_column: options.PromptColumn = None,
    category: options.Category = None,
    as_json: Json = False,
) -> None:
    """Show what a prompts file is understood as: its form, prompts and categories.

    Example: dpok prompts PartiPrompts.tsv --category Animals
    """
    file = _prompts.understood(file, prompt_column)
    found = file.found(category)
    if as_json:
        entries = [
            {
                "prompt": each.prompt,
                "categories": dict(zip(found.categories, each.categories, strict=True)),
            }
            for each in found.entries
        ]
        console.say(dumps(entries, indent=2), console.out)
        return
    texts = [entry.prompt for entry in found.entries]
    different = len(set(texts))
    some = f"{len(texts)} prompt{'s' * (len(texts) > 1)}"
    repeats = f", {different} different" if different < len(texts) else ""
    where = f", column {found.column!r}" if found.column else ""
    longest = max(texts, key=lambda text: len(text.split()))
    console.say(f"{file.path}: {found.form}{where}.", console.out)
    console.say(f"{some}{repeats}.", console.out)
    length = len(longest.split())
    console.say(f"The longest has {length} words: {longest.translate(ENDS)}", console.out)
    for number, column in enumerate(found.categories):
        counts = Counter(entry.categories[number] for entry in found.entries)
        table = tables.PlainTable(column, "prompts")
        for name, count in counts.items():
            table.add_row(name or "(none)", str(count))
        console.show(table)
    console.say(f"\nThe first {len(texts[:FIRST])}:", console.out)
    for text in texts[:FIRST]:
        console.say(text.translate(ENDS), console.out)
