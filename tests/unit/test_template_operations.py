"""Measured filters give what Jinja2's and Python's own give."""

import json

import jinja2
import pytest

from qwen_edge.runtime.template_budget import Budget, LimitError
from qwen_edge.runtime.template_operations import MeasuredOperations, is_small_power

VALUE = {"b": ["ü", 1.5, None, True], "a": {"c": "</x>"}}


@pytest.fixture
def operations() -> MeasuredOperations:
    environment = jinja2.Environment(autoescape=False)  # the oracle
    return MeasuredOperations(Budget(), environment.getitem)


@pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
@pytest.mark.parametrize("ensure_ascii", [False, True])
@pytest.mark.parametrize("sort_keys", [False, True])
@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_tojson_equals_json_dumps(
    operations: MeasuredOperations,
    indent: int | str | None,
    ensure_ascii: bool,
    sort_keys: bool,
    separators: tuple[str, str] | None,
) -> None:
    text = operations.to_json(VALUE, ensure_ascii, indent, separators, sort_keys)
    assert text == json.dumps(
        VALUE,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def test_filters_equal_those_of_jinja2(operations: MeasuredOperations) -> None:
    own = jinja2.Environment(autoescape=False).filters
    context = jinja2.nodes.EvalContext(jinja2.Environment(autoescape=False))
    assert operations.replace("a-a", "a", "b", 1) == own["replace"](context, "a-a", "a", "b", 1)
    assert operations.join([1, "x"], "-") == own["join"](context, [1, "x"], "-")
    rows = [{"n": 1}, {"n": "y"}]
    assert operations.join(rows, ",", "n") == own["join"](context, rows, ",", "n")
    assert operations.trim(" x ") == own["trim"](" x ")
    assert operations.indent("a\n\nb", 3, True) == own["indent"]("a\n\nb", 3, True)


@pytest.mark.parametrize("indent", [17, " " * 17, 10**9])
def test_a_wide_indent_is_refused_before_anything_is_written(
    operations: MeasuredOperations, indent: int | str
) -> None:
    with pytest.raises(LimitError, match="more than 16 characters"):
        operations.to_json([1], indent=indent)


def test_products_and_powers_are_measured(operations: MeasuredOperations) -> None:
    operations.check_product("ab", 3)
    operations.check_product(5, 10**9)
    with pytest.raises(LimitError):
        operations.check_product(10**9, "ab")
    assert is_small_power(2, 100)
    assert is_small_power(2.0, 10**9)
    assert not is_small_power(2, 10**9)
