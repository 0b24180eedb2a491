"""Parameter types: schema and reading agree, and whatever has no JSON form is refused."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.tools.parameter_types import ArgumentError, make_parameter_type


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Place(TypedDict):
    name: str
    height: NotRequired[float]


@dataclass
class Order:
    """What is wanted.

    Args:
        item: The product.
    """

    item: str
    color: Color = Color.RED
    places: list[Place] = field(default_factory=list)
    total: int = field(default=0, init=False)


@dataclass
class Tree:
    children: "list[Tree]"


@dataclass
class Range:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class Opaque:
    pass


UserId = NewType("UserId", int)
STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, STRING),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (Any, {}),
        (UserId, {"type": "integer"}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["a", 1, None], {"enum": ["a", 1, None]}),
        (Color, {"type": "string", "enum": ["red", "blue"]}),
        (Level, {"type": "integer", "enum": [1, 2]}),
        (str | None, {"type": ["string", "null"]}),
        (Optional[int], {"type": ["integer", "null"]}),  # noqa: UP045 - as others write it
        (list[str] | int, {"anyOf": [{"type": "array", "items": STRING}, {"type": "integer"}]}),
        (list, {"type": "array", "items": {}}),
        (Sequence[str], {"type": "array", "items": STRING}),
        (tuple[str, ...], {"type": "array", "items": STRING}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (Mapping[str, Any], {"type": "object", "additionalProperties": {}}),
        (Annotated[str, "A city."], {"type": "string", "description": "A city."}),
        (Annotated[int, 3, "Days.", "more"], {"type": "integer", "description": "Days."}),
    ],
)
def test_schemas(annotation: object, schema: object) -> None:
    assert make_parameter_type(annotation, "x").schema == schema


def test_the_schema_of_a_tuple_has_each_item() -> None:
    schema = make_parameter_type(tuple[str, int], "x").schema
    assert schema["prefixItems"] == [STRING, {"type": "integer"}]
    assert (schema["minItems"], schema["maxItems"], schema["items"]) == (2, 2, False)


def test_the_schema_of_a_dataclass() -> None:
    schema = make_parameter_type(Order, "x").schema
    assert list(schema["properties"]) == ["item", "color", "places"]
    assert schema["properties"]["item"] == {"type": "string", "description": "The product."}
    assert schema["required"] == ["item"]
    assert schema["additionalProperties"] is False
    place = schema["properties"]["places"]["items"]
    assert place["required"] == ["name"]
    assert set(place["properties"]) == {"name", "height"}


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (str, "a", "a"),
        (int, 3, 3),
        (int, 3.0, 3),
        (float, 3, 3.0),
        (float, 0.5, 0.5),
        (bool, True, True),
        (None, None, None),
        (Any, [1], [1]),
        (Literal["a", 1], 1, 1),
        (Color, "blue", Color.BLUE),
        (Level, 2, Level.HIGH),
        (int | None, None, None),
        (int | float, 2.5, 2.5),
        (list[Color], ["red"], [Color.RED]),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[str, int], ["a", 1], ("a", 1)),
        (dict[str, Color], {"a": "red"}, {"a": Color.RED}),
        (Place, {"name": "a", "height": 2}, {"name": "a", "height": 2.0}),
        (Order, {"item": "a", "color": "blue"}, Order("a", Color.BLUE)),
        (Range, {"low": 1, "high": 2}, Range(1, 2)),
    ],
)
def test_reading(annotation: object, value: object, expected: object) -> None:
    read = make_parameter_type(annotation, "x").read(value, "x")
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (str, 3, "x is 3; expected a text"),
        (str, None, "expected a text"),
        (int, True, "x is True; expected a whole number"),
        (int, 2.5, "expected a whole number"),
        (float, False, "expected a number"),
        (float, 10**400, "too large"),
        (bool, 1, "expected true or false"),
        (None, 0, "expected null"),
        (Literal[1], True, "expected one of 1"),
        (Literal["a"], ["a"], "expected one of 'a'"),
        (Color, "green", "expected one of 'red', 'blue'"),
        (int | None, "a", "expected a whole number or x is 'a'; expected null"),
        (list[int], {"a": 1}, "expected a list"),
        (list[int], [1, "b"], "x[1] is 'b'"),
        (tuple[str, int], ["a"], "x has 1 items; expected 2"),
        (dict[str, int], {"a": "b"}, "x.a is 'b'"),
        (Place, {"height": 2}, "x.name is missing"),
        (Place, {"name": "a", "depth": 1}, "x.depth is unknown; expected name, height"),
        (Order, {"item": "a", "total": 3}, "x.total is unknown"),
        (Order, "a" * 100, "..."),
    ],
)
def test_a_value_that_does_not_fit(annotation: object, value: object, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make_parameter_type(annotation, "x").read(value, "x")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bytes, "bytes, which has no JSON form"),
        (datetime.date, "date, which has no JSON form"),
        (set[str], "no JSON form"),
        (Opaque, "Opaque"),
        (dict[int, str], "keys of type int"),
        (Literal[b"a"], "something else"),
        (Enum("Empty", []), "something else"),
        (Enum("Odd", [("A", 1.5)]), "something else"),
        (Tree, "which holds itself"),
        (TypedDict("Odd", {"a": "Missing"}), "cannot be read"),  # noqa: F821
        ("list[int]", "no JSON form"),
    ],
)
def test_a_type_without_json_form_is_refused(annotation: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_parameter_type(annotation, "The parameter 'x' of 'f'")
    assert words in caught.value.problem
    assert caught.value.problem.startswith("The parameter 'x' of 'f'")


def test_types_nested_without_end_are_refused() -> None:
    annotation: object = int
    for _ in range(30):
        annotation = list[annotation]  # type: ignore[valid-type]
    with pytest.raises(UsageError, match="nested more than 16 deep"):
        make_parameter_type(annotation, "x")
