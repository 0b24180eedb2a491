"""Schemas are measured before the engine sees them."""

import pytest

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.structured.schema_limits import check_schema, read_schema


def nested(depth: int) -> dict[str, object]:
    """Return a schema that many lists deep."""
    schema: dict[str, object] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def containing_itself() -> dict[str, object]:
    """Return a schema that is its own items, as only Python objects can be."""
    schema: dict[str, object] = {"type": "array"}
    schema["items"] = schema
    return schema


@pytest.mark.trust("T-SRV-09")
@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (nested(30_000), "levels of depth"),
        (containing_itself(), "levels of depth"),
        ("[" * 30_000, "JSON object|levels of depth|not JSON"),
        ({"enum": ["x" * 20 + str(number) for number in range(19_999)]}, "characters"),
        ({"enum": list(range(20_000))}, "values"),
        ({"const": "x" * 1_000_000}, "characters"),
        (" " * 1_000_000, "characters"),
    ],
)
def test_size_and_depth_are_bounded_when_a_schema_is_read(schema: object, what: str) -> None:
    with pytest.raises(GrammarError, match=what):
        read_schema(schema)  # type: ignore[arg-type]


@pytest.mark.trust("T-SRV-09")
@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"enum": list(range(5_001))}, "enum at # has 5,001"),
        ({"type": "string", "pattern": "(a{1000}){1000}"}, "pattern at #"),
        ({"patternProperties": {"(" * 60: {}}}, "nested groups"),
        ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf"),
        ({"type": "number", "multipleOf": 0.123457}, "multipleOf"),
        ({"allOf": [{"multipleOf": 211}, {"multipleOf": 223}]}, "multipleOf of one value"),
        ({"allOf": [{"pattern": f"{i}"} for i in range(9)]}, "9 patterns"),
        ({"properties": {f"p{i}": {} for i in range(1_001)}}, "properties"),
        ({"anyOf": [{} for _ in range(1_001)]}, "options"),
        ({"$defs": {f"d{i}": {} for i in range(4_001)}}, "schemas in it"),
        ({"maxLength": 10**30}, "maxLength"),
        ({"items": 5}, "has 5 at #/items"),
        ({"properties": {"a": "string"}}, "at #/properties/a"),
        ({"$ref": "https://example.com/a.json"}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "other.json#/$defs/a"}}}, "nothing is fetched"),
    ],
)
def test_what_would_explode_is_refused_with_its_place(schema: dict[str, object], what: str) -> None:
    with pytest.raises(GrammarError, match=what):
        check_schema(schema)


def test_long_chains_of_references_are_refused() -> None:
    links: dict[str, object] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(600)}
    schema = {"$defs": {**links, "d600": {}}, "$ref": "#/$defs/d0"}
    with pytest.raises(GrammarError, match="inside each other"):
        check_schema(schema)


def test_patterns_are_counted_through_references_and_per_value() -> None:
    parts = {f"d{i}": {"pattern": "a", "$ref": f"#/$defs/d{i + 1}"} for i in range(9)}
    with pytest.raises(GrammarError, match="patterns"):
        check_schema({"$defs": {**parts, "d9": {}}, "$ref": "#/$defs/d0"})
    check_schema({"properties": {f"p{i}": {"pattern": "a"} for i in range(100)}})
    check_schema({"anyOf": [{"pattern": "a"} for _ in range(100)]})


def test_data_that_looks_like_a_schema_is_not_taken_for_one() -> None:
    looks = {"$ref": "https://example.com", "items": 5, "pattern": "(" * 100}
    check_schema({"const": looks, "enum": [looks], "default": looks, "examples": [looks]})


def test_a_schema_may_name_itself() -> None:
    check_schema({"$id": "https://example.com/a", "items": {"$ref": "https://example.com/a#"}})
