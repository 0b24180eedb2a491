"""How long answers have to be, and schemas that never end."""

import pytest

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.structured.schema_cost import measure_schema

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"$ref": "#"}, "#"),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            },
            "#",
        ),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "#"),
        ({"anyOf": [{"$ref": "#"}]}, "#"),
        ({"allOf": [{"type": "object"}, {"$ref": "#"}]}, "#"),
        # The whole could end, but a model that begins the optional part could not.
        (
            {
                "type": "object",
                "properties": {"n": {"$ref": "#/$defs/node"}},
                "$defs": {"node": NODE},
            },
            "#/properties/n",
        ),
    ],
)
def test_schemas_without_an_end_are_refused(schema: dict[str, object], path: str) -> None:
    with pytest.raises(GrammarError, match="never comes to an end") as caught:
        measure_schema(schema)
    assert caught.value.facts["path"] == path


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]},
        {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$defs": {"node": NODE}},  # not used
        {"const": {"$ref": "#"}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}, "required": ["a"]},
    ],
)
def test_recursion_that_can_end_is_not_refused(schema: dict[str, object]) -> None:
    assert measure_schema(schema).shortest >= 1


def test_answers_longer_than_any_context_are_refused() -> None:
    inner = {"type": "array", "minItems": 1_000, "items": {"type": "array", "minItems": 1_000}}
    for schema in (inner, {"type": "string", "minLength": 1_000_000}):
        with pytest.raises(GrammarError, match="shortest answer"):
            measure_schema(schema)


def test_growth_is_that_of_the_largest_part() -> None:
    large = {"type": "array", "items": {"type": "string", "minLength": 50}, "minItems": 4}
    cost = measure_schema({"type": "object", "properties": {"a": large, "b": {"const": "x" * 300}}})
    assert cost.shortest <= 10
    assert cost.growth == cost.scalar_growth == 302  # the constant with its quotes
    assert 200 <= measure_schema(large, lambda text: 1).growth <= 230


def test_a_long_chain_is_measured_in_linear_time() -> None:
    parts: dict[str, object] = {
        f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}, "minItems": 1}
        for i in range(1_500)
    }
    assert measure_schema({"$defs": parts, "$ref": "#/$defs/d0"}).shortest > 1_500
