"""Makes a schema one that the engine understands, without changing what it means.

Three things that real schemas hold would be refused: formats that nobody has defined, which the
standard says to ignore; keywords that say nothing; and `oneOf` of references whose options have
a property to tell them apart. Read `grammar.py` for where it is used.
"""

from typing import cast

from qwen_edge.runtime.structured.pattern_sample import FORMAT_SAMPLES
from qwen_edge.runtime.structured.schema_nodes import Schema, iter_schemas, resolve

ENGINE_OPTIONS = "x-guidance"  # a key of the engine's own, by which a schema could change ours
_TRIVIAL = {"uniqueItems": False, "unevaluatedProperties": True, "unevaluatedItems": True}
_MAX_REFERENCES = 20


def rewrite_schema(root: Schema) -> Schema:
    """Return the schema for the engine; changes it in place.

    Args:
        root: A checked schema that nobody else holds.
    """
    if isinstance(root, dict):
        root.pop(ENGINE_OPTIONS, None)
    for _, schema in iter_schemas(root):
        if not isinstance(schema, dict):
            continue
        if isinstance(schema.get("format"), str) and schema["format"] not in FORMAT_SAMPLES:
            del schema["format"]
        for keyword, value in _TRIVIAL.items():
            if schema.get(keyword) is value:
                del schema[keyword]
        options = schema.get("oneOf")
        if isinstance(options, list) and "anyOf" not in schema and _are_disjoint(root, options):
            # At its place among the keywords: the engine takes them in order.
            items = [("anyOf" if key == "oneOf" else key, value) for key, value in schema.items()]
            schema.clear()
            schema.update(items)
    return root


def _are_disjoint(root: Schema, options: list[object]) -> bool:
    """Whether no value can satisfy two of some schemas, as far as constants and types tell."""
    resolved = [_follow(root, option) for option in options]
    if not all(isinstance(option, dict) for option in resolved):
        return False
    parts = cast(list[dict[str, object]], resolved)
    return all(
        _differ(root, first, second)
        for index, first in enumerate(parts)
        for second in parts[index + 1 :]
    )


def _differ(root: Schema, first: dict[str, object], second: dict[str, object]) -> bool:
    """Whether two schemas have a type, a constant or a required constant that excludes both."""
    ours, theirs = _types(first), _types(second)
    if ours and theirs and not ours & theirs:
        return True
    if "object" not in ours or "object" not in theirs or len(ours | theirs) > 1:
        return False
    for name in set(_names(first, "required")) & set(_names(second, "required")):
        values = [_constants(root, schema, name) for schema in (first, second)]
        if values[0] and values[1] and not values[0] & values[1]:
            return True
    return False


def _constants(root: Schema, schema: dict[str, object], name: str) -> set[str]:
    """Return the texts that a property is limited to; none where it is not."""
    properties = schema.get("properties")
    part = _follow(root, properties.get(name)) if isinstance(properties, dict) else None
    if not isinstance(part, dict):
        return set()
    values = [part["const"]] if "const" in part else part.get("enum")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return set()
    return set(values)


def _types(schema: dict[str, object]) -> set[str]:
    """Return the types a schema allows; none where it says nothing. An integer is a number."""
    kind = schema.get("type")
    kinds = [kind] if isinstance(kind, str) else kind if isinstance(kind, list) else []
    return {"number" if kind == "integer" else str(kind) for kind in kinds}


def _follow(root: Schema, schema: object) -> object:
    """Return what a schema refers to, if a reference is all it is."""
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            return schema
        schema = resolve(root, str(schema["$ref"]))
    return None


def _names(schema: dict[str, object], keyword: str) -> list[str]:
    """Return the names in a keyword's list."""
    value = schema.get(keyword)
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
