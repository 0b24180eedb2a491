"""Finds the schemas in a JSON schema: which values are schemas, and what references mean.

A schema may hold data that looks like a schema, in `const`, `enum`, `default` and `examples`;
those are never taken for one. Only references into the same document are followed.
"""

from collections.abc import Iterator, Mapping
from urllib.parse import unquote

Schema = dict[str, object] | bool
"""One schema, as plain JSON."""

_IN_MAPS = ("properties", "patternProperties", "dependentSchemas")
_DEFINITIONS = ("$defs", "definitions")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
)


def iter_children(
    schema: Mapping[str, object], *, with_definitions: bool = False
) -> Iterator[tuple[str, object]]:
    """Yield the values directly in a schema that have to be schemas.

    Args:
        schema: Any schema but true and false.
        with_definitions: Whether those that only references use are among them.

    Yields:
        `(path, value)`, the path relative to the schema and without a slash at its beginning.
    """
    for keyword in (*_IN_MAPS, *(_DEFINITIONS if with_definitions else ())):
        members = schema.get(keyword)
        if isinstance(members, dict):
            yield from ((f"{keyword}/{name}", member) for name, member in members.items())
    for keyword in (*_IN_LISTS, *_SINGLE):
        value = schema.get(keyword)
        if isinstance(value, list):  # `items` too, in older drafts
            yield from ((f"{keyword}/{index}", member) for index, member in enumerate(value))
        elif value is not None:
            yield keyword, value


def iter_schemas(root: Schema) -> Iterator[tuple[str, object]]:
    """Yield every value of a document that has to be a schema, the whole first.

    Yields:
        `(path, value)` with paths like `#/properties/name`.
    """
    stack: list[tuple[str, object]] = [("#", root)]
    while stack:
        path, schema = stack.pop()
        yield path, schema
        if isinstance(schema, dict):
            children = list(iter_children(schema, with_definitions=True))
            stack.extend((f"{path}/{name}", child) for name, child in reversed(children))


def resolve(root: Schema, reference: str) -> Schema | None:
    """Return the schema that `#` or `#/a/b` refers to; None where it cannot be found."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    value: object = root
    for part in unquote(reference[2:]).split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value if isinstance(value, dict | bool) else None
