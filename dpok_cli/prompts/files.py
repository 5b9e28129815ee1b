"""Prompt files, and datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from dpok_cli.errors import InputError
from dpok_cli.inputs import at_home, read_text
from dpok_cli.prompts import arrow
from dpok_cli.prompts.formats import FORMS, Found, by_content, of_category


class PromptFile:
    """Prompts in one of the forms of `formats`, known by the file's name or else its content.

    A name ``hf:DATASET[:SPLIT[:COLUMN]]`` is a dataset of the Hugging Face hub. The file is read
    once, at the first use, so it may be a pipe.
    """

    def __init__(self, path: str | Path, column: str = ""):
        """``column`` names that of the prompts, where there are columns; it is found otherwise."""
        self.path, self.column = at_home(Path(path)), column

    def with_column(self, column: str) -> PromptFile:
        """Return the same file, with another ``column``."""
        return PromptFile(self.path, column)

    def prompts(self, category: str | None = None) -> tuple[str, ...]:
        """Return the prompts, or with a ``category`` those of it.

        Raises InputError for a file that cannot be read or has another form, for an unknown
        category, and if no prompt is left.
        """
        return tuple(entry.prompt for entry in self.found(category).entries)

    def categories(self, category: str | None = None) -> dict[str, tuple[str, ...]]:
        """Return the categories of each prompt that has one, in the order of their columns.

        Those of a prompt that is there twice are the first, or with a ``category`` the first that
        has it. Raises InputError as `prompts` does.
        """
        own: dict[str, tuple[str, ...]] = {}
        for entry in self.found(category).entries:
            if any(entry.categories):
                own.setdefault(entry.prompt, entry.categories)
        return own

    def found(self, category: str | None = None) -> Found:
        """Return what the file was understood as; raises InputError as `prompts` does."""
        found = self._found
        if category is not None:
            found = self._named(of_category, found, category)
        if not found.entries:
            raise InputError(f"There is no prompt in {self.path}.")
        return found

    @cached_property
    def _found(self) -> Found:
        if str(self.path).startswith(arrow.HUB):
            return self._named(arrow.dataset, str(self.path), self.column)
        if self.path.suffix.lower() == ".parquet":
            return self._named(arrow.parquet, self.path, self.column)
        text = read_text(self.path, "the prompt file ")
        form = FORMS.get(self.path.suffix.lower(), by_content)
        return self._named(form, text, self.column)

    def _named(self, read: Callable[..., Found], *parts: object) -> Found:
        """Return what ``read`` makes of its ``parts``, with the file's name in an InputError."""
        try:
            return read(*parts)
        except InputError as error:
            raise InputError(f"The prompt file {self.path}: {error}") from error
