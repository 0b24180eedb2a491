"""Typed Python functions: signature to schema, the model's arguments back to a call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.tools.parameter_types import ArgumentError
from qwen_edge.runtime.tools.python_functions import TypedFunction


@dataclass
class Point:
    x: float
    y: float = 0.0


def draw(
    points: list[Point], unit: Annotated[Literal["cm", "mm"], "Of x and y."] = "cm", *, n: int = 1
) -> str:
    """Draw a line.

    Args:
        points: Where it bends.
        unit: Not this text.
        n: How often.
    """
    return f"{points} {unit} {n}"


def test_the_schema_of_a_function() -> None:
    typed = TypedFunction(draw)
    assert (typed.name, typed.description) == ("draw", "Draw a line.")
    assert typed.parameters["required"] == ["points"]
    assert typed.parameters["additionalProperties"] is False
    properties = typed.parameters["properties"]
    assert list(properties) == ["points", "unit", "n"]
    assert properties["points"]["description"] == "Where it bends."
    assert properties["unit"] == {
        "type": "string",
        "enum": ["cm", "mm"],
        "description": "Of x and y.",
    }


def test_arguments_are_converted_and_defaults_stay() -> None:
    typed = TypedFunction(draw)
    assert typed(points=[{"x": 1}]) == "[Point(x=1.0, y=0.0)] cm 1"
    assert typed(points=[], unit="mm", n=2) == "[] mm 2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "points is missing"),
        ({"points": [], "colour": 1}, "colour is unknown; expected points, unit, n"),
        ({"points": [{"y": 1}]}, "points[0].x is missing"),
        ({"points": [], "unit": "km"}, "unit is 'km'"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        TypedFunction(draw)(**arguments)
    assert words in str(caught.value)


def test_a_method_has_no_self() -> None:
    class Shop:
        def sell(self, self_service: bool) -> bool:
            return self_service

    typed = TypedFunction(Shop().sell)
    assert list(typed.parameters["properties"]) == ["self_service"]
    assert typed(self_service=True) is True


def test_annotations_may_be_texts() -> None:
    def f(a: "int | None") -> None: ...

    assert TypedFunction(f).parameters["properties"] == {"a": {"type": ["integer", "null"]}}


def no_annotation(a) -> None: ...  # type: ignore[no-untyped-def]


def stars(*a: int) -> None: ...


def keywords(**a: int) -> None: ...


def positional(a: int, /) -> None: ...


def unknown(a: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821


def unsupported(a: bytes) -> None: ...


async def waits(a: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_annotation, "'a' without an annotation"),
        (stars, "'a', which takes any number"),
        (keywords, "'a', which takes any keyword"),
        (positional, "'a', which can be given by position only"),
        (unknown, "annotations that cannot be read"),
        (unsupported, "The parameter 'a' of the function 'unsupported'"),
        (waits, "is async"),
        (Point, "no function"),
        (dict.fromkeys, "cannot be a tool"),
    ],
)
def test_a_function_that_cannot_be_a_tool(function: Callable[..., object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        TypedFunction(function)
    assert words in caught.value.problem
    assert getattr(function, "__name__", "") in caught.value.problem
