"""Closes the objects of a schema: no entries that it does not name.

Left open, as JSON Schema has it, an object invites a small model to go on with entries of its own
until the limit ends it. Read `grammar.py` for when this is done.
"""

from collections.abc import Mapping
from typing import Any

# Keywords beside which a closed object would not mean what was written, or nothing at all.
_COMPOSING = frozenset(
    {
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "dependentRequired",
        "dependentSchemas",
        "if",
        "minProperties",
        "not",
        "oneOf",
        "patternProperties",
        "propertyNames",
        "unevaluatedProperties",
    }
)


def close_objects(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have no other entries than those it names.

    An object that says nothing about further entries may have any. Where it names some, it is
    taken to mean these, unless the schema is composed of parts that only together say what is
    allowed. What fits the result fits the schema. `"additionalProperties": true` keeps it open.

    Args:
        schema: A JSON schema; not changed.
    """
    if _is_composed(schema):
        return dict(schema)
    return _close(schema)


def _close(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with its objects closed, at every depth."""
    closed = dict(schema)
    properties = closed.get("properties")
    for key in ("properties", "$defs", "definitions"):
        if isinstance(closed.get(key), Mapping):
            closed[key] = {name: _close_any(part) for name, part in closed[key].items()}
    if "items" in closed:
        closed["items"] = _close_any(closed["items"])
    for key in ("prefixItems", "anyOf"):
        is_free = key != "anyOf" or properties is None
        if is_free and isinstance(closed.get(key), list):
            closed[key] = [_close_any(part) for part in closed[key]]
    required = closed.get("required")
    names = required if isinstance(required, list) else []
    is_whole = isinstance(properties, Mapping) and all(name in properties for name in names)
    if is_whole and not _COMPOSING & closed.keys():
        closed["additionalProperties"] = False
    return closed


def _close_any(schema: object) -> object:
    """Return a closed schema; one that is true, false or malformed stays."""
    return _close(schema) if isinstance(schema, Mapping) else schema


def _is_composed(schema: object) -> bool:
    """Whether several parts of a schema may describe the same object."""
    if isinstance(schema, Mapping):
        is_joined = "allOf" in schema or ("$ref" in schema and "properties" in schema)
        return is_joined or any(_is_composed(part) for part in schema.values())
    return isinstance(schema, list) and any(_is_composed(part) for part in schema)
