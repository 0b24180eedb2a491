"""Measured filters give what Jinja2's and Python's own give."""

import json

import jinja2
import jinja2.sandbox
import pytest

from qwen_edge.errors import PackageError
from qwen_edge.runtime.template import Template
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


ROWS = [{"n": "b", "m": {"k": 2}}, {"n": "A", "m": {"k": 1}}, {"n": "b", "m": {"k": 3}}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ rows|sort(attribute='n')|map(attribute='m.k')|list }}",
        "{{ rows|sort(true, true, 'n,m.k')|map(attribute='m.k')|join }}",
        "{{ rows|unique(attribute='n')|map(attribute='n')|list }}{{ [2, 1, 2]|unique|sort }}",
        "{{ rows|max(attribute='m.k') }}{{ [3, 1]|min }}{{ []|max }}{{ 'bAc'|sort }}",
        "{{ rows|selectattr('n', 'equalto', 'b')|list }}{{ rows|rejectattr('m.k')|list }}",
        "{{ rows|selectattr('n', 'in', 'a,b,c,d,e,f')|list }}",
        "{{ ['1.2.3.4.5.6']|map('replace', '.', '1.2.3.4.5.6')|list }}",
        "{{ [0, 1]|select|list }}{{ range(5)|reject('odd')|list }}{{ rows[0]|list }}",
        "{{ nothing|map('upper')|list }}{{ none|select|list }}{{ nothing|list }}",
        "{{ dict(rows[0], n=1) }}{{ dict([['a', 1]], b=2) }}{{ dict() }}{{ dict(a=1) }}",
        "{{ \"it's one-two\"|title }}{{ 'abc'|reverse }}{{ [1, 2]|reverse|list }}",
    ],
)
def test_filters_that_go_through_items_give_what_jinja2s_give(source: str) -> None:
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(source)
    assert Template(source).render({"rows": ROWS}) == plain.render(rows=ROWS)


@pytest.mark.parametrize("call", ["none|list", "5|sort", "5|max", "dict(5)", "dict([1])"])
def test_what_has_no_items_is_refused_as_before(call: str) -> None:
    with pytest.raises(PackageError, match="TypeError"):
        Template("{{ " + call + " }}").render({})


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
