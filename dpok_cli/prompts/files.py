"""Prompt files."""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from dpok_cli.errors import InputError, suggest
from dpok_cli.inputs import at_home, is_unicode, read_text

_FORM = '{"a prompt": {"category": "a name"}, ...}'


class PromptFile:
    """Prompts, one per line, or JSON as in the prompt file released with the DPOK paper.

    The JSON is an object ``{"PROMPT": {"category": "NAME"}, ...}``, known by its name or
    its content. Empty lines are ignored. The file is read once, at the first use, so it may be a
    pipe.
    """

    def __init__(self, path: str | Path):
        self.path = at_home(Path(path))

    def prompts(self, category: str | None = None) -> tuple[str, ...]:
        """Return the prompts, or with a ``category`` those of it.

        Raises InputError for a file that cannot be read or has another form, for an unknown
        category, and if no prompt is left.
        """
        entries = self._entries
        if category is not None:
            if not self._is_json:
                raise InputError(
                    f"--category needs a JSON prompt file; {self.path} has one prompt per line."
                )
            known = {own for _, own in entries if own is not None}
            if category not in known:
                raise InputError(
                    f"{self.path} has no category {category!r}.{suggest(category, known)}"
                )
            entries = [(prompt, own) for prompt, own in entries if own == category]
        if not entries:
            raise InputError(f"There is no prompt in {self.path}.")
        return tuple(prompt for prompt, _ in entries)

    def categories(self) -> dict[str, str]:
        """Return the category of each prompt that has one; raises InputError as `prompts` does."""
        return {prompt: own for prompt, own in self._entries if own is not None}

    @cached_property
    def _text(self) -> str:
        return read_text(self.path, "the prompt file ")

    @cached_property
    def _is_json(self) -> bool:
        """Whether the file has JSON's name, or is a JSON object, as one from a pipe may be."""
        if self.path.suffix.lower() == ".json":
            return True
        try:
            return isinstance(json.loads(self._text), dict)
        except (ValueError, RecursionError):
            return False

    @cached_property
    def _entries(self) -> list[tuple[str, str | None]]:
        """The prompts in order, each with its category."""
        if self._is_json:
            return self._from_json()
        # Not splitlines, which splits at separators that a prompt may hold.
        lines = (line.strip() for line in self._text.split("\n"))
        return [(line, None) for line in lines if line]

    def _from_json(self) -> list[tuple[str, str | None]]:
        try:
            entries = json.loads(self._text, object_pairs_hook=_Object)
        except (ValueError, RecursionError) as error:
            raise InputError(f"The prompt file {self.path} is not JSON: {error}.") from error
        if not isinstance(entries, dict) or not all(
            isinstance(it, dict) for it in entries.values()
        ):
            raise InputError(f"The prompt file {self.path} is not of the form {_FORM}.")
        if isinstance(entries, _Object) and entries.repeated:
            raise InputError(f"{self.path} has {entries.repeated[0]!r} twice: remove one of them.")
        for prompt in entries:
            if not is_unicode(prompt):
                raise InputError(f"{self.path}: the prompt {prompt!r} is not valid Unicode.")
        return [
            (prompt, str(entry["category"]) if "category" in entry else None)
            for prompt, entry in entries.items()
        ]


class _Object(dict[str, Any]):
    """A JSON object that knows which keys it has more than once; a dict keeps the last of them."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.repeated = [
            key for key, times in Counter(key for key, _ in pairs).items() if times > 1
        ]
