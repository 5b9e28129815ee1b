"""Prompts of Parquet files and of datasets of the hub, through the datasets library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from dpok_cli.errors import InputError
from dpok_cli.prompts.formats import Found, table

#: How a dataset of the hub is named: hf:DATASET[:SPLIT[:COLUMN]]. A folder of one will do.
HUB = "hf:"


def parquet(file: Path, column: str = "") -> Found:
    """Read a Parquet file; raises InputError."""
    _library()
    from pyarrow import ArrowInvalid, types
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            fields = opened.schema_arrow
            plain = [each.name for each in fields if not types.is_nested(each.type)]
            rows = opened.read(columns=plain).to_pylist()
    except (OSError, ArrowInvalid) as error:
        raise InputError(f"it cannot be read as Parquet: {_first_line(error)}") from error
    return table("Parquet", plain, rows, column)


def dataset(name: str, column: str = "") -> Found:
    """Read ``hf:DATASET[:SPLIT[:COLUMN]]``, by default its first split; raises InputError.

    ``column`` is taken where the name has none.
    """
    library = _library()
    place, split, own = [*name.removeprefix(HUB).split(":"), "", ""][:3]
    remarks: tuple[str, ...] = ()
    try:
        if not split:
            split, *others = library.get_dataset_split_names(place)
            if others:
                remarks = (f"split {split!r} is taken, of {', '.join([split, *others])}.",)
        loaded = library.load_dataset(place, split=split)
    except Exception as error:  # of the hub, the network, the loader of a format, ...
        raise InputError(f"it cannot be loaded: {_first_line(error)}") from error
    plain = _plain(loaded.features, library.Value)
    found = table("a dataset", plain, loaded.select_columns(plain).to_list(), own or column)
    return replace(found, remarks=remarks + found.remarks)


def _plain(features: Mapping[str, Any], kind: type) -> list[str]:
    """Return the columns of single values: images would be decoded."""
    return [name for name, feature in features.items() if isinstance(feature, kind)]


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise InputError("it needs the datasets library: pip install 'dpok[datasets]'.") from error
    return datasets


def _first_line(error: Exception) -> str:
    """Return what an error says, for the end of a line."""
    first = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return f"{first}."
