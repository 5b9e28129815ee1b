"""What commands with a prompts file share."""

from __future__ import annotations

from dpok_cli.display import console
from dpok_cli.errors import InputError
from dpok_cli.prompts.files import PromptFile


def settled(file: PromptFile | None, column: str | None, quiet: bool = False) -> PromptFile | None:
    """Return what `understood` does of a prompts ``file``, if there is one.

    Raises InputError for a column without a file.
    """
    if file is None:
        if column:
            raise InputError("--prompt-column needs --prompts FILE, whose column it is.")
        return None
    return understood(file, column, quiet)


def understood(file: PromptFile, column: str | None, quiet: bool = False) -> PromptFile:
    """Return a prompts ``file`` with its ``column``; says what was guessed or left out of it.

    Raises InputError for a file that cannot be read.
    """
    file = file.with_column(column or "")
    remarks = file.found().remarks
    for remark in () if quiet else remarks:
        console.say(f"{file.path}: {remark}")
    return file
