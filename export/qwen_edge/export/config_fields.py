"""Checked reading of single fields of a config.json.

A checkpoint comes from anybody, so every number is bounded before it sizes anything. These
functions know nothing of what a field means; `decoder.py` and `rope.py` do.
"""

import math
from collections.abc import Mapping
from typing import NoReturn

from qwen_edge.errors import CheckpointError

_FIX = "restore config.json from the model's publisher"
_MAX_SHOWN = 80


def read_int(
    fields: Mapping[str, object], name: str, *, low: int, high: int, default: int | None = None
) -> int:
    """Return an integer field within bounds.

    Args:
        fields: The parsed config.json, or an object inside it.
        name: The field.
        low: Least legal value.
        high: Greatest legal value.
        default: Stands for a field that is absent or null; without one it is required.

    Raises:
        CheckpointError: The field is missing, not an integer, or out of bounds.
    """
    value = fields.get(name)
    if value is None and default is not None:
        value = default
    # A bool is an int to Python, and a whole float is what some writers make of an int.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _refuse(name, value, f"an integer from {low:,} to {high:,}")
    return value


def read_float(
    fields: Mapping[str, object],
    name: str,
    *,
    low: float,
    high: float,
    default: float | None = None,
) -> float:
    """Return a finite number within bounds; arguments and errors as in `read_int`."""
    value = fields.get(name)
    if value is None and default is not None:
        value = default
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not low <= value <= high  # before what cannot take a number of 400 digits
        or not math.isfinite(value)
    ):
        _refuse(name, value, f"a number from {low:g} to {high:g}")
    return float(value)


def read_optional_float(
    fields: Mapping[str, object], name: str, *, low: float, high: float
) -> float | None:
    """Return a finite number within bounds, or None for a field that is absent or null."""
    if fields.get(name) is None:
        return None
    return read_float(fields, name, low=low, high=high)


def read_bool(fields: Mapping[str, object], name: str, *, default: bool) -> bool:
    """Return a true-or-false field, or the default where it is absent or null."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        _refuse(name, value, "true or false")
    return value


def shown(value: object) -> str:
    """Return a value as it may stand in an error text; a hostile one may be a megabyte."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    """Raise CheckpointError for one field."""
    found = "is missing from config.json" if value is None else f"is {shown(value)} in config.json"
    raise CheckpointError(f"{name!r} {found}; it must be {expected}.", _FIX, field=name)
