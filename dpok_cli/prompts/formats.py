"""The forms that prompts are published in, each read as its own readers do.

A form takes a text, or rows, and returns what it understood, `Found`. Nothing that is no prompt
becomes one: what cannot be a prompt is an InputError, and what has none is a remark.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dpok_cli.errors import InputError, suggest
from dpok_cli.inputs import is_unicode

#: Names of the column that holds prompts, in order of preference; case does not matter.
PROMPT_COLUMNS = ("prompt", "prompts", "text", "caption")
#: Names of columns that categories are in; the first one found is that of the tables.
CATEGORY_COLUMNS = ("category", "tag", "challenge")

#: The form without columns.
LINES = "one prompt per line"

Row = Mapping[str, Any]


class Entry(NamedTuple):
    """A prompt, and its value in each of the columns of categories, "" where it has none."""

    prompt: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a file was understood as."""

    form: str  # as "CSV"
    entries: tuple[Entry, ...]
    column: str = ""  # that of the prompts, where there are columns
    categories: tuple[str, ...] = ()  # the columns of categories
    remarks: tuple[str, ...] = ()  # what was left out or guessed, a line each


def lines(text: str) -> Found:
    """Read one prompt per line; empty lines are none."""
    # Not splitlines, which splits at separators that a prompt may hold.
    stripped = (line.strip() for line in text.split("\n"))
    return Found(LINES, tuple(Entry(line) for line in stripped if line))


def delimited(text: str, delimiter: str, column: str = "") -> Found:
    """Read CSV (``delimiter`` ",") or TSV ("\\t") with the names of its columns in the first line.

    A TSV whose quotes do not pair is read without them, as most are written.
    """
    form = "TSV" if delimiter == "\t" else "CSV"
    try:
        numbered = _cells(text, delimiter, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        if form == "CSV":
            raise InputError(f"it is not {form}: {error}.") from error
        numbered = _cells(text, delimiter, csv.QUOTE_NONE)
    if not numbered:
        return Found(form, ())
    (_, header), *body = numbered
    names = [name.strip() for name in header]
    # A column without a name is none: spreadsheets write such beside the others.
    twice = [name for name, times in Counter(names).items() if name and times > 1]
    if twice:
        raise InputError(f"two columns are named {twice[0]!r}.")
    for line, cells in body:
        if len(cells) > len(names):
            raise InputError(
                f"line {line} has {len(cells)} cells and the first line {len(names)}: put quotes"
                f" around a cell with {'a tab' if form == 'TSV' else 'a comma'} in it."
            )
    if len(names) == 1 and not column and names[0].lower() not in PROMPT_COLUMNS:
        raise InputError(
            f"its first line is {names[0]!r}, and should name the column: write prompt above it, or"
            " name the file .txt if it has one prompt per line."
        )
    rows = [dict(zip(names, cells, strict=False)) for _, cells in body]
    return table(form, names, rows, column)


def _cells(text: str, delimiter: str, quoting: Any) -> list[tuple[int, list[str]]]:
    """Return the rows that are not empty, each with the number of its last line."""
    # Without newline="" the newlines of quoted cells would be changed.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]


def json_lines(text: str, column: str = "") -> Found:
    """Read an object, or a prompt in quotes, of each line that is not empty."""
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(f"line {number} is not JSON: {error}.") from error
    return _of_list("JSON lines", values, column)


def json_text(text: str, column: str = "") -> Found:
    """Read a list of prompts or of objects, or an object: by prompt, or by category.

    By prompt is the form of the file released with the DPOK paper,
    ``{"PROMPT": {"category": "NAME"}, ...}``; by category, as HPSv2's styles,
    ``{"NAME": ["PROMPT", ...], ...}``.
    """
    try:
        value = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        if _is_json_lines(text):  # which many name .json
            return json_lines(text, column)
        raise InputError(f"it is not JSON: {error}.") from error
    if isinstance(value, list):
        return _of_list("a JSON list", value, column)
    if not isinstance(value, _Object):
        raise InputError("it is not a JSON list or object.")
    if value.repeated:
        raise InputError(f"it has {value.repeated[0]!r} twice: remove one of them.")
    if all(isinstance(each, dict) for each in value.values()):
        rows = [{"prompt": prompt} | each for prompt, each in value.items()]
        for prompt, each in value.items():
            if each.get("prompt", prompt) != prompt:
                raise InputError(f"{prompt!r} has another prompt in it: write a list of objects.")
        return table("JSON by prompt", ["prompt", *_keys(value.values())], rows, column)
    if all(isinstance(each, list) for each in value.values()):
        rows = [{"prompt": each, "category": name} for name in value for each in value[name]]
        return table("JSON by category", ["prompt", "category"], rows, column)
    raise InputError(
        'it is none of the known forms: ["a prompt", ...], [{"prompt": "..."}, ...], {"a prompt":'
        ' {"category": "a name"}, ...} or {"a category": ["a prompt", ...], ...}.'
    )


def _of_list(form: str, values: Sequence[Any], column: str) -> Found:
    if all(isinstance(each, str) for each in values):
        return table(form, ["prompt"], [{"prompt": each} for each in values], column)
    if not all(isinstance(each, dict) for each in values):
        raise InputError(f"{form} has to be of prompts alone, or of objects alone.")
    return table(form, _keys(values), values, column)


def _keys(rows: Iterable[Row]) -> list[str]:
    return [*dict.fromkeys(key for row in rows for key in row)]


def table(form: str, names: Sequence[str], rows: Iterable[Row], column: str = "") -> Found:
    """Take the prompts of a ``column`` of rows, and the categories of those that hold them.

    Without a ``column`` it is one of PROMPT_COLUMNS, or else the first other one with texts that
    are no numbers, and a remark says which.
    """
    rows = list(rows)
    chosen, remarks = column, []
    if column and column not in names:
        raise InputError(f"it has no column {column!r}.{suggest(column, names)}")
    if not chosen:
        chosen = next(iter(_named(names, PROMPT_COLUMNS)), "")
    if not chosen and rows:
        free = [name for name in names if name.lower() not in CATEGORY_COLUMNS]
        chosen = next((name for name in free if _has_texts(name, rows)), "")
        if not chosen:
            raise InputError(f"none of its columns has texts: {', '.join(names)}.")
        remarks = [f"column {chosen!r} is taken for the prompts; --prompt-column names another."]
    of_categories = [name for name in _named(names, CATEGORY_COLUMNS) if name != chosen]
    entries, without = [], 0
    for number, row in enumerate(rows, 1):
        prompt = row.get(chosen)
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            without += 1
            continue
        if not isinstance(prompt, str):
            raise InputError(f"the prompt of row {number} is not a text: {prompt!r}.")
        if not is_unicode(prompt):
            raise InputError(f"the prompt {prompt!r} is not valid Unicode.")
        own = ("" if row.get(name) is None else str(row[name]).strip() for name in of_categories)
        entries.append(Entry(prompt.strip(), tuple(own)))
    if without:
        remarks.append(f"{without} of its {len(rows)} rows have no prompt and are left out.")
    return Found(form, tuple(entries), chosen, tuple(of_categories), tuple(remarks))


def _named(names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Return those of ``names`` that are ``wanted``, in the order of the latter."""
    found = [name for name in names if name.lower() in wanted]
    return sorted(found, key=lambda name: wanted.index(name.lower()))


def _has_texts(name: str, rows: Sequence[Row]) -> bool:
    values = [row[name] for row in rows if row.get(name) not in (None, "")]
    return any(isinstance(each, str) and not _is_number(each) for each in values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def by_content(text: str, column: str = "") -> Found:
    """Read a text of which no name says the form: JSON, a table with a known column, or lines."""
    first = next(iter(_filled(text)), "")
    delimiter = "\t" if "\t" in first else ","
    names = [name.strip().strip('"').lower() for name in first.split(delimiter)]
    # Single words: "text, bold, on a wall" is a prompt. With a tab it is none.
    named = delimiter == "\t" or all(re.fullmatch(r"[\w.-]*", name) for name in names)
    if named and {*names} & {*PROMPT_COLUMNS, column.lower()} - {""}:
        return delimited(text, delimiter, column)
    return lines_or_json(text, column)


def lines_or_json(text: str, column: str = "") -> Found:
    """Read JSON or JSON lines if it is such, and one prompt per line otherwise.

    What only begins so is refused, such as a file that was cut off.
    """
    if isinstance(_json(text), dict | list):
        return json_text(text, column)
    if any(isinstance(_json(line), dict) for line in _filled(text)):
        return json_lines(text, column)
    if _JSON_START.match(text):
        return json_text(text, column)
    if column:
        raise InputError(f"it has one prompt per line, and no column {column!r}.")
    return lines(text)


def _is_json_lines(text: str) -> bool:
    filled = _filled(text)
    return bool(filled) and all(isinstance(_json(line), dict) for line in filled)


def _filled(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


#: How JSON with texts begins; prompts begin as "[a cat]" or "{red|blue} cat".
_JSON_START = re.compile(r"""\s*(?:\[\s*\{?|\{)\s*(?:"|$)""")

#: How a file is read, by the end of its name in lower case; others by their content.
FORMS: dict[str, Callable[[str, str], Found]] = {
    ".csv": lambda text, column: delimited(text, ",", column),
    ".tsv": lambda text, column: delimited(text, "\t", column),
    ".json": json_text,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".txt": lines_or_json,
}


def of_category(found: Found, category: str) -> Found:
    """Return the entries of a ``category``, in any of the columns; raises InputError."""
    known = {own for entry in found.entries for own in entry.categories} - {""}
    if not known:
        raise InputError(
            f"it has no category {category!r}, nor any other: they are in a column"
            f" {', '.join(CATEGORY_COLUMNS[:-1])} or {CATEGORY_COLUMNS[-1]}, or in JSON."
        )
    if category not in known:
        raise InputError(f"it has no category {category!r}.{suggest(category, known)}")
    return replace(
        found, entries=tuple(entry for entry in found.entries if category in entry.categories)
    )


class _Object(dict[str, Any]):
    """A JSON object that knows which keys it has more than once; a dict keeps the last of them."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.repeated = [
            key for key, times in Counter(key for key, _ in pairs).items() if times > 1
        ]
