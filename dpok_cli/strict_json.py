"""The JSON that dpok writes: any parser reads it, also those that know no NaN."""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """Return ``value`` as JSON, made `strict`; ``options`` are those of `json.dumps`."""
    return json.dumps(strict(value), allow_nan=False, **options)


def numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record that was read, with NaN for each null."""
    return {key: math.nan if value is None else value for key, value in record.items()}


def strict(value: Any) -> Any:
    """Return ``value`` with None for each number that is not finite.

    Surrogates, which stand for bytes of a name that are no UTF-8, become their escapes.
    """
    if isinstance(value, dict):
        return {strict(key): strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [strict(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value
