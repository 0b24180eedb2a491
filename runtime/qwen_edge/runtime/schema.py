"""Strict JSON to frozen dataclasses and back, with every problem named at once.

A dataclass is its own schema: its field names are the keys and its annotations the types.
Unknown keys, missing keys, wrong types, duplicate keys and NaN are problems, never guesses.
This module knows nothing of manifests or packages; read `manifest.py` for its first user.
"""

import dataclasses
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from qwen_edge.errors import did_you_mean

T = TypeVar("T")


class SchemaError(ValueError):
    """A JSON text does not fit its dataclass.

    Args:
        problems: One sentence each, naming the key, what was found and what was expected.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def parse_json(text: bytes) -> Any:
    """Parse UTF-8 JSON that has no duplicate keys, NaN, infinities or bottomless nesting.

    Raises:
        SchemaError: The text is something else; the position is named where it is known.
    """
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except UnicodeDecodeError as error:
        raise SchemaError([f"byte {error.start:,} is not UTF-8"]) from error
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno:,} column {error.colno:,} is not JSON ({error.msg})"
        raise SchemaError([problem]) from error
    except RecursionError as error:
        raise SchemaError(["it is nested too deeply to be read"]) from error
    except ValueError as error:  # an integer of more than 4,300 digits, or one of ours
        raise error if isinstance(error, SchemaError) else SchemaError([str(error)]) from error


def read_dataclass(kind: type[T], data: object, where: str = "") -> T:
    """Build a dataclass from parsed JSON.

    Args:
        kind: A dataclass whose fields are str, int, float, bool, None unions, `Literal`,
            tuples of one type, string-keyed mappings, or dataclasses of these.
        data: What `parse_json` returned.
        where: Key path of `data`, for the texts of problems. Empty for the whole.

    Raises:
        SchemaError: With every problem found, in the order of the fields.
    """
    problems: list[str] = []
    value = _read(kind, data, where, problems)
    if problems:
        raise SchemaError(problems)
    return typing.cast("T", value)


def to_json(value: object) -> Any:
    """Return dataclasses, tuples and mappings as plain dicts and lists for `json.dumps`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object; a repeated key is a problem, since parsers differ on its meaning."""
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise SchemaError([f"key {_short(repeated)} stands there twice"])
    return result


def _refuse_constant(name: str) -> Any:
    raise SchemaError([f"{name} is not a JSON number"])


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise SchemaError([f"the number {_short(text)} is too large"])
    return value


def _read(kind: Any, data: object, where: str, problems: list[str]) -> object:
    """Return `data` as `kind`, or None after adding to `problems`."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _read_fields(typing.cast("type[Any]", kind), data, where, problems)
    if origin in (types.UnionType, typing.Union):
        return _read_union(typing.get_args(kind), data, where, problems)
    if origin is Literal:
        return _read_literal(typing.get_args(kind), data, where, problems)
    if origin is tuple:
        return _read_list(typing.get_args(kind)[0], data, where, problems)
    if origin is Mapping:
        return _read_mapping(typing.get_args(kind)[1], data, where, problems)
    return _read_scalar(kind, data, where, problems)


def _read_fields(kind: type[Any], data: object, where: str, problems: list[str]) -> object:
    if not isinstance(data, dict):
        problems.append(f"{_name(where)} is {_describe(data)}, expected an object")
        return None
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in data.keys() - fields.keys():
        hint = did_you_mean(key, fields.keys() - data.keys()).replace(" D", " (d")
        close = ")" if hint else ""
        problems.append(f"{_name(_join(where, key))} is not a key of this format{hint}{close}")
    hints = typing.get_type_hints(kind)
    before = len(problems)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read(hints[name], data[name], _join(where, name), problems)
        elif field.default is dataclasses.MISSING:
            problems.append(f"{_name(_join(where, name))} is missing")
    return kind(**values) if len(problems) == before else None


def _read_union(kinds: tuple[Any, ...], data: object, where: str, problems: list[str]) -> object:
    """Read the first member that fits; report the last one's problem, as the most specific."""
    if data is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    tried: list[str] = []
    for kind in kinds:
        tried = []
        value = _read(kind, data, where, tried)
        if not tried:
            return value
    if len(kinds) > 1:
        names = ", ".join(_EXPECTED.get(kind, str(kind)) for kind in kinds)
        tried = [f"{_name(where)} is {_describe(data)}, expected one of: {names}"]
    problems.extend(tried)
    return None


def _read_literal(
    allowed: tuple[Any, ...], data: object, where: str, problems: list[str]
) -> object:
    if isinstance(data, (str, int)) and not isinstance(data, bool) and data in allowed:
        return data
    listed = ", ".join(repr(value) for value in allowed)
    problems.append(f"{_name(where)} is {_describe(data)}, expected one of: {listed}")
    return None


def _read_list(kind: Any, data: object, where: str, problems: list[str]) -> object:
    if not isinstance(data, list):
        problems.append(f"{_name(where)} is {_describe(data)}, expected a list")
        return None
    return tuple(_read(kind, item, f"{where}[{i}]", problems) for i, item in enumerate(data))


def _read_mapping(kind: Any, data: object, where: str, problems: list[str]) -> object:
    if not isinstance(data, dict):
        problems.append(f"{_name(where)} is {_describe(data)}, expected an object")
        return None
    items = {key: _read(kind, item, _join(where, key), problems) for key, item in data.items()}
    return types.MappingProxyType(items)


_EXPECTED = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _read_scalar(kind: Any, data: object, where: str, problems: list[str]) -> object:
    if kind is float and type(data) is int and abs(data) < 2**53:
        return float(data)
    if type(data) is kind:  # exact, since bool is a subclass of int
        return data
    problems.append(f"{_name(where)} is {_describe(data)}, expected {_EXPECTED[kind]}")
    return None


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _name(where: str) -> str:
    return _short(where) if where else "the whole"


def _describe(data: object) -> str:
    if isinstance(data, dict):
        return "an object"
    if isinstance(data, list):
        return "a list"
    if data is None or isinstance(data, bool):
        return {None: "null", True: "true", False: "false"}[data]
    return _short(data)


def _short(value: object) -> str:
    """Return `repr(value)`, cut where it would flood the message."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "a very large number"
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
