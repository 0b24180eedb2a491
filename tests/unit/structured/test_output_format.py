"""Formats are values; what is no format at all is refused."""

import json

import pytest

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.structured import OutputFormat


def test_equal_formats_are_one_key_and_text_equals_objects() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    first = OutputFormat.json_schema(schema)
    assert {first: 1}[OutputFormat.json_schema(json.dumps(schema))] == 1
    assert list(json.loads(first.text)["properties"]) == ["b", "a"]


def test_a_format_does_not_change_with_the_schema_it_was_made_from() -> None:
    schema: dict[str, object] = {"type": "integer"}
    output = OutputFormat.json_schema(schema)
    schema["type"] = "string"
    assert output == OutputFormat.json_schema({"type": "integer"})


def test_choices_are_kept_once_and_in_order() -> None:
    assert json.loads(OutputFormat.choice(["b", "a", "b"]).text) == ["b", "a"]


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (OutputFormat.regex, ""),
        (OutputFormat.regex, "\ud800"),
        (OutputFormat.lark, 5),
        (OutputFormat.choice, []),
        (OutputFormat.choice, "yes"),
        (OutputFormat.choice, ["yes", ""]),
        (OutputFormat.choice, ["x"] * 5_001),
        (OutputFormat.json_schema, "5"),
        (OutputFormat.json_schema, "{"),
        (OutputFormat.json_schema, '{"minimum": NaN}'),
        (OutputFormat.json_schema, {"minimum": float("inf")}),
        (OutputFormat.json_schema, {"const": {1, 2}}),
        (OutputFormat.json_schema, {1: {}}),
        (OutputFormat.json_schema, '{"const": "\\ud800"}'),
        (OutputFormat.json_schema, {"minimum": 10**400}),
    ],
)
def test_what_is_no_format_is_refused(make: object, value: object) -> None:
    with pytest.raises(GrammarError):
        make(value)  # type: ignore[operator]
