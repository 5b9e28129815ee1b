"""Prompt files."""

import json
from pathlib import Path

from dpok_cli.errors import InputError, suggest


def read_prompts(file: Path, category: str | None = None) -> tuple[str, ...]:
    """Read prompts: one per line, or ``.json`` as in the prompt file released with the DPOK paper.

    The JSON is an object ``{"PROMPT": {"category": "NAME"}, ...}``; ``category`` selects the
    prompts of one category. Empty lines are ignored. Raises InputError for a file that cannot be
    read or has another form, for an unknown category, and if no prompt is left.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"Cannot read the prompt file {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The prompt file {file} is not UTF-8 text.") from error
    if file.suffix == ".json":
        prompts = _from_json(file, text, category)
    elif category is not None:
        raise InputError(f"--category needs a .json prompt file; {file} has one prompt per line.")
    else:
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"There is no prompt in {file}.")
    return tuple(prompts)


def read_categories(file: Path | None) -> dict[str, str]:
    """Return the category of each prompt that has one; only ``.json`` files have categories.

    Without a ``file`` there are none. Raises InputError as `read_prompts` does.
    """
    if file is None:
        return {}
    read_prompts(file)
    if file.suffix != ".json":
        return {}
    entries = json.loads(file.read_text(encoding="utf-8-sig"))
    return {text: str(entry["category"]) for text, entry in entries.items() if "category" in entry}


def _from_json(file: Path, text: str, category: str | None) -> list[str]:
    form = '{"a prompt": {"category": "a name"}, ...}'
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The prompt file {file} is not JSON: {error}.") from error
    if not isinstance(entries, dict) or not all(isinstance(it, dict) for it in entries.values()):
        raise InputError(f"The prompt file {file} is not of the form {form}.")
    if category is None:
        return list(entries)
    prompts = [prompt for prompt, entry in entries.items() if entry.get("category") == category]
    if not prompts:
        known = {str(entry["category"]) for entry in entries.values() if "category" in entry}
        raise InputError(f"{file} has no category {category!r}.{suggest(category, known)}")
    return prompts
