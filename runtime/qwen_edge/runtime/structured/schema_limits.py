"""What a JSON schema may cost before the engine looks at it.

Servers have been killed with schemas: by depth, by size, by references that never end, by
patterns that explode. Whatever is refused here is refused with the place and both numbers. What
the keywords mean is left to the engine; read `schema_cost.py` for how long answers have to be.
"""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from itertools import chain

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.structured.pattern_limits import (
    MAX_INTERSECTIONS,
    measure_pattern,
    too_large,
)
from qwen_edge.runtime.structured.schema_nodes import Schema, iter_schemas, resolve

MAX_SCHEMA_CHARACTERS = 262_144
MAX_DEPTH = 100  # levels of JSON; the engine's parser stops at 128
MAX_VALUES = 20_000
MAX_SCHEMAS = 4_000
MAX_CHAIN = 500  # references or options that only lead to each other
MAX_PROPERTIES = 1_000  # measured: 0.08 s, 2,000 optional ones take 0.4 s, 5,000 3 s
MAX_OPTIONS = 1_000  # the engine stops at 2,000
MAX_ENUM_VALUES = 5_000
MAX_MULTIPLES = 20_000  # sum of all `multipleOf`; measured: 10,000 take 0.05 s, 100,000 0.5 s
MAX_COUNT = 2**31 - 1  # of lengths and items
_MAX_INTEGER_BITS = 1_024
_MAX_COUNTED_DEPTH = 100_000


def read_schema(schema: Mapping[str, object] | str | bool) -> Schema:
    """Return a schema as plain JSON.

    Args:
        schema: As JSON text, or as Python would read it.

    Raises:
        GrammarError: It is not JSON, not a schema, or too large.
    """
    value: object = schema
    if isinstance(schema, str):
        if len(schema) > MAX_SCHEMA_CHARACTERS:
            raise too_large("The schema", "characters", len(schema), MAX_SCHEMA_CHARACTERS)
        try:
            value = json.loads(schema, parse_constant=_refuse_constant)
        except RecursionError as error:
            raise too_large(
                "The schema", "levels of depth", schema.count("{"), MAX_DEPTH
            ) from error
        except ValueError as error:
            raise GrammarError(f"The schema is not JSON: {error}", "pass a JSON schema") from error
    if not isinstance(value, Mapping | bool):
        raise GrammarError(
            f"The schema is of type {type(value).__name__}; expected a JSON object.",
            "pass a JSON schema, for example {'type': 'object'}",
        )
    _measure(value)
    plain = _to_plain(value)
    assert isinstance(plain, dict | bool)
    return plain


def check_schema(root: Schema) -> None:
    """Raise GrammarError when compiling a schema could take too long or bring the engine down.

    Args:
        root: As `read_schema` returns it.
    """
    identities = {"", *_identities(root)}
    num_schemas = 0
    multiples = Decimal(0)
    for path, schema in iter_schemas(root):
        num_schemas += 1
        if num_schemas > MAX_SCHEMAS:
            raise too_large("The schema", "schemas in it", num_schemas, MAX_SCHEMAS)
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, dict):
            raise GrammarError(
                f"The schema has {json.dumps(schema):.60} at {path}; expected a schema there.",
                "write an object such as {'type': 'string'}, or true or false",
                path=path,
            )
        _check_reference(path, schema, identities)
        _check_values(path, schema)
        multiples += _multiple(schema.get("multipleOf"))
    if multiples > MAX_MULTIPLES:
        raise too_large("The schema", "in the sum of its multipleOf", int(multiples), MAX_MULTIPLES)
    _check_intersections(root)


def _check_values(path: str, schema: dict[str, object]) -> None:
    """Raise GrammarError when a keyword's own value is too large."""
    enum = schema.get("enum")
    if isinstance(enum, list) and len(enum) > MAX_ENUM_VALUES:
        raise too_large(f"The schema's enum at {path}", "values", len(enum), MAX_ENUM_VALUES)
    for keyword in ("anyOf", "oneOf", "allOf"):
        if len(_list(schema, keyword)) > MAX_OPTIONS:
            num_options = len(_list(schema, keyword))
            raise too_large(
                f"The schema's {keyword} at {path}", "options", num_options, MAX_OPTIONS
            )
    properties = schema.get("properties")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        where = f"The schema's object at {path}"
        raise too_large(where, "properties", len(properties), MAX_PROPERTIES)
    patterns = schema.get("patternProperties")
    names = patterns if isinstance(patterns, dict) else {}
    for pattern in (schema.get("pattern"), *names):
        if isinstance(pattern, str):
            measure_pattern(pattern, where=f"The schema's pattern at {path}")
    for keyword in ("minLength", "maxLength", "minItems", "maxItems", "minProperties"):
        count = schema.get(keyword)
        if isinstance(count, int | float) and count > MAX_COUNT:
            raise too_large(f"The schema at {path}", f"as {keyword}", int(count), MAX_COUNT)


def _check_reference(path: str, schema: dict[str, object], identities: set[str]) -> None:
    """Raise GrammarError when a reference leads out of the document. Nothing is fetched."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.partition("#")[0] not in identities:
        raise GrammarError(
            f"The schema refers to {reference!r:.120} at {path}, which is not in it; nothing is "
            "fetched.",
            "copy that schema to $defs and refer to it as '#/$defs/NAME'",
            path=path,
            reference=reference,
        )


def _check_intersections(root: Schema) -> None:
    """Raise GrammarError when too many patterns would have to match one value at once.

    Each is counted where it applies: directly, through `allOf`, through references. A cycle is
    cut; `schema_cost.py` refuses those without an end.
    """
    counted: dict[int, tuple[int, Decimal]] = {}
    above: set[int] = set()

    def count(schema: object, path: str) -> tuple[int, Decimal]:
        """Return how many patterns apply to a value, and the product of its multiples."""
        if not isinstance(schema, dict) or id(schema) in above:
            return 0, Decimal(1)
        if id(schema) in counted:
            return counted[id(schema)]
        if len(above) >= MAX_CHAIN:
            what = "references and options inside each other"
            raise too_large(f"The schema at {path}", what, len(above) + 1, MAX_CHAIN)
        above.add(id(schema))
        joined = [count(resolve(root, str(schema.get("$ref", ""))), path)]
        joined += [count(member, path) for member in _list(schema, "allOf")]
        number = ("pattern" in schema) + ("format" in schema) + sum(n for n, _ in joined)
        product = max(_multiple(schema.get("multipleOf")), Decimal(1))
        for _, factor in joined:
            product *= factor
        for keyword in ("anyOf", "oneOf"):
            options = [count(member, path) for member in _list(schema, keyword)]
            number += max((n for n, _ in options), default=0)
            product *= max((factor for _, factor in options), default=Decimal(1))
        above.discard(id(schema))
        if number > MAX_INTERSECTIONS:
            what = "patterns and formats for one value"
            raise too_large(f"The schema at {path}", what, number, MAX_INTERSECTIONS)
        if product > MAX_MULTIPLES:
            what = "as multipleOf of one value"
            raise too_large(f"The schema at {path}", what, int(product), MAX_MULTIPLES)
        counted[id(schema)] = number, product
        return counted[id(schema)]

    for path, schema in iter_schemas(root):
        count(schema, path)


def _measure(value: object) -> None:
    """Raise GrammarError when a value is too deep or large, or not JSON. Needs no stack."""
    num_values = num_characters = 0
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        num_values += 1
        if num_values > MAX_VALUES:
            raise too_large("The schema", "values", num_values + len(stack), MAX_VALUES)
        if isinstance(item, Mapping | list | tuple):
            if depth > MAX_DEPTH:
                raise too_large("The schema", "levels of depth", _depth(item, depth), MAX_DEPTH)
            keys = item if isinstance(item, Mapping) else ()
            members = item.values() if isinstance(item, Mapping) else item
            stack.extend((member, depth + 1) for member in chain(members, keys))
            if not all(isinstance(key, str) for key in keys):
                raise _not_json(next(key for key in keys if not isinstance(key, str)), "the key ")
            continue
        text = item if isinstance(item, str) else _check_scalar(item)
        num_characters += len(text)
        if num_characters > MAX_SCHEMA_CHARACTERS:
            raise too_large("The schema", "characters", num_characters, MAX_SCHEMA_CHARACTERS)
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise _not_json(text)


def _depth(value: object, depth: int) -> int:
    """Return how deep a value goes along its first members, up to a bound."""
    while isinstance(value, Mapping | list | tuple) and value and depth < _MAX_COUNTED_DEPTH:
        members = value.values() if isinstance(value, Mapping) else value
        value = next((m for m in members if isinstance(m, Mapping | list | tuple)), None)
        depth += value is not None
    return depth


def _check_scalar(value: object) -> str:
    """Return a number, a boolean or null as text, or raise GrammarError."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int) and value.bit_length() <= _MAX_INTEGER_BITS:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise _not_json(value)


def _not_json(value: object, kind: str = "") -> GrammarError:
    """Return the error for a value that JSON does not have."""
    is_large = isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS
    described = "a very large number" if is_large else f"{kind}{value!a:.60}"
    return GrammarError(
        f"The schema holds {described}, which is not JSON.",
        "use only objects with text keys, lists, texts, finite numbers, true, false and null",
    )


def _refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which Python's parser would take."""
    raise ValueError(f"{name} is not a JSON value")


def _to_plain(value: object) -> object:
    """Return a measured value made of dict and list only."""
    if isinstance(value, Mapping):
        return {str(key): _to_plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(member) for member in value]
    return value


def _identities(root: Schema) -> set[str]:
    """Return every address that schemas of the document give themselves."""
    schemas = (schema for _, schema in iter_schemas(root) if isinstance(schema, dict))
    return {str(schema["$id"]).partition("#")[0] for schema in schemas if "$id" in schema}


def _multiple(value: object) -> Decimal:
    """Return the integer that a `multipleOf` counts in, at its last decimal place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return Decimal(0)
    sign, digits, _ = Decimal(repr(value)).normalize().as_tuple()
    assert sign == 0
    return Decimal(int("".join(map(str, digits))))


def _list(schema: dict[str, object], keyword: str) -> list[object]:
    """Return the list that is a keyword's value, or an empty one."""
    value = schema.get(keyword)
    return value if isinstance(value, list) else []
