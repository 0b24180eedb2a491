"""Strict JSON: every problem is named, nothing is guessed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.schema import SchemaError, parse_json, read_dataclass, to_json


@dataclass(frozen=True)
class Inner:
    count: int
    ratio: float


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    ids: tuple[int, ...]
    extra: Mapping[str, str | bool | int]
    note: str | None
    version: int = 1


def good() -> dict[str, Any]:
    return {
        "name": "n",
        "kind": "a",
        "inner": {"count": 1, "ratio": 0.5},
        "ids": [1, 2],
        "extra": {"x": "y", "z": True},
        "note": None,
    }


def test_round_trip() -> None:
    value = read_dataclass(Outer, good())
    assert value == Outer("n", "a", Inner(1, 0.5), (1, 2), {"x": "y", "z": True}, None)
    assert to_json(value) == {**good(), "version": 1}


def test_whole_number_is_taken_for_a_ratio_but_not_the_reverse() -> None:
    data = good()
    data["inner"] = {"count": 1, "ratio": 2}
    assert read_dataclass(Outer, data).inner.ratio == 2.0
    data["inner"] = {"count": 1.0, "ratio": 2}
    with pytest.raises(SchemaError, match=r"'inner\.count' is 1\.0, expected a whole number"):
        read_dataclass(Outer, data)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": 5}, "'name' is 5, expected a text"),
        ({"kind": "c"}, "'kind' is 'c', expected one of: 'a', 'b'"),
        ({"kind": True}, "'kind' is true, expected one of"),
        ({"inner": []}, "'inner' is a list, expected an object"),
        ({"inner": {"ratio": 1}}, "'inner.count' is missing"),
        ({"ids": 3}, "'ids' is 3, expected a list"),
        ({"ids": [1, True]}, "'ids[1]' is true, expected a whole number"),
        ({"extra": []}, "'extra' is a list, expected an object"),
        ({"extra": {"x": 1.5}}, "'extra.x' is 1.5, expected one of: a text, true or false"),
        ({"note": 1}, "'note' is 1, expected a text"),
        ({"nmae": 1}, "'nmae' is not a key of this format"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_problem_names_key_value_and_expectation(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(SchemaError) as caught:
        read_dataclass(Outer, good() | change)
    assert expected in str(caught.value)


def test_unknown_key_names_the_closest_missing_one() -> None:
    data = good()
    data["nmae"] = data.pop("name")
    with pytest.raises(SchemaError) as caught:
        read_dataclass(Outer, data)
    assert caught.value.problems == (
        "'nmae' is not a key of this format (did you mean 'name'?)",
        "'name' is missing",
    )


def test_all_problems_are_collected() -> None:
    with pytest.raises(SchemaError) as caught:
        read_dataclass(Outer, {})
    assert len(caught.value.problems) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' stands there twice"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[1e999]", "the number '1e999' is too large"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"{} {}", "line 1 column 4 is not JSON (Extra data)"),
        (b"", "line 1 column 1 is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "4300"),
    ],
    ids=["duplicate", "nan", "infinite", "bytes", "bom", "two", "empty", "deep", "long number"],
)
def test_text_that_is_not_strict_json(text: bytes, expected: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_json(text)
    assert expected in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(key=st.sampled_from(sorted(good())), value=json_values)
def test_any_value_is_read_or_refused(key: str, value: object) -> None:
    """No value makes the reader fail in another way than with its own error."""
    try:
        read = read_dataclass(Outer, good() | {key: value})
    except SchemaError as error:
        assert error.problems
    else:
        assert to_json(getattr(read, key)) == value
