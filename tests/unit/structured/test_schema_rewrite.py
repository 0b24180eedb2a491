"""Schemas are rewritten only where the meaning stays."""

import copy

import pytest

from qwen_edge.runtime.structured.schema_rewrite import rewrite_schema

CAT = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog"]}}, "required": ["kind"]}
TAME = {"type": "object", "properties": {"kind": {"enum": ["dog", "cat"]}}, "required": ["kind"]}


def rewritten(schema: dict[str, object]) -> object:
    """Return the rewritten form of a copy."""
    return rewrite_schema(copy.deepcopy(schema))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"type": "string", "format": "password"}, {"type": "string"}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "array", "uniqueItems": False}, {"type": "array"}),
        ({"type": "array", "uniqueItems": True}, {"type": "array", "uniqueItems": True}),
        ({"x-guidance": {"lenient": True}, "type": "object"}, {"type": "object"}),
        ({"const": {"format": "password"}}, {"const": {"format": "password"}}),
        ({"items": {"format": "x"}}, {"items": {}}),
    ],
)
def test_what_says_nothing_goes(before: dict[str, object], after: object) -> None:
    assert rewritten(before) == after


@pytest.mark.parametrize(
    ("options", "is_disjoint"),
    [
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], True),
        ([CAT, DOG], True),
        ([CAT, TAME], False),
        ([{"type": "string"}, {"type": "null"}], True),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([CAT, {"properties": {"kind": {"const": "dog"}}, "required": ["kind"]}], False),
        ([CAT, {**DOG, "required": []}], False),
        ([CAT, True], False),
        ([{"$ref": "#/$defs/missing"}, CAT], False),
        ([{"$ref": "#/$defs/loop"}, CAT], False),
    ],
)
def test_one_of_becomes_any_of_only_where_no_value_fits_twice(
    options: list[object], is_disjoint: bool
) -> None:
    definitions = {"cat": CAT, "dog": DOG, "loop": {"$ref": "#/$defs/loop"}}
    result = rewritten({"$defs": definitions, "oneOf": options, "title": "x"})
    keys = ["$defs", "anyOf" if is_disjoint else "oneOf", "title"]
    assert isinstance(result, dict)
    assert list(result) == keys
