"""Hostile templates: out of the sandbox, for ever, or too large; each ends in an error."""

import gc
import threading
import time
from typing import Any

import pytest

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime import template_budget, template_sandbox
from qwen_edge.runtime.template import Template, _check_jinja_version


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the real time limit, so that endless templates do not take seconds."""
    monkeypatch.setattr(template_budget, "MAX_RENDER_S", 0.1)


def render(source: str, **variables: Any) -> str:
    return Template(source).render({"messages": [{"role": "user", "content": "x"}], **variables})


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ range.__class__ }}{{ range.__class__.__base__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ messages|map(attribute='__class__')|map(attribute='__mro__')|list|first|first }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{% set f = 'x'.format %}{{ f() }}",
    "{{ ['{0.__class__}']|map('format', 1)|list }}",
    "{{ '%s' % messages }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% for x in [1] %}{{ loop._recurse.__globals__ }}{{ loop.__class__.__mro__ }}{% endfor %}",
    "{{ environment.budget }}{{ environment.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].pop('role') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'base' %}",
    "{{ caller.__globals__.x }}",
]


@pytest.mark.trust("T-TPL-01", "T-TPL-02")
@pytest.mark.parametrize("source", ESCAPES)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(PackageError):
        render(source)


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loop-test": "{% for a in range(99999) if range(99999)|list|length == 0 %}{% endfor %}",
    "loop-test-in": "{% set s = 'a' * 4000000 %}{% for a in range(9999) if 'b' in s %}{% endfor %}",
    "select": "{{ range(99999)|select('in', range(99999)|list)|list|length }}",
    "map": "{{ range(99999)|map('replace', '9', range(9999)|list|string)|list|length }}",
    "continue": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% continue %}{% endfor %}"
        "{% endfor %}"
    ),
}


@pytest.mark.trust("T-TPL-03")
@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS.keys())
def test_endless_templates_are_stopped_in_time(source: str) -> None:
    start_s = time.thread_time()
    with pytest.raises(PackageError, match=r"ran for more than|made more than"):
        render(source)
    assert time.thread_time() - start_s < 0.6


BIG = "{% set big = 'aB' * 2000000 %}"
MANY = BIG + "{% set many = range(3000)|map(attribute='x', default=big) %}"
PRIME = 2**61 - 1  # its multiples have one hash: each is compared with all before it
LONG_STEPS = {
    "sort": BIG + "{{ big|sort|length }}",
    "sort-selected": BIG + "{{ big|select|sort|length }}",
    "sort-one-text": MANY + "{{ many|sort|length }}",
    "max-one-text": MANY + "{{ many|max|length }}",
    "min-one-text": MANY + "{{ many|min|length }}",
    "unique-one-text": MANY + "{{ many|unique|list|length }}",
    "unique-characters": BIG + "{{ big|unique|list|length }}",
    "list-selected": BIG + "{{ big|select|list|length }}",
    "title": BIG + "{{ big|title }}",
    "sort-attributes": "{% set a = 'x,' * 99999 %}{{ range(3000)|sort(attribute=a)|length }}",
    "sort-attributes-by-place": "{% set a = 'x,' * 99999 %}"
    "{{ range(3000)|sort(false, false, a)|length }}",
    "max-attributes": "{% set a = 'x.' * 99999 %}{{ range(3000)|max(false, a) }}",
    "unique-attributes": "{% set a = 'x.' * 99999 %}{{ range(3000)|unique(false, a)|list }}",
    "map-attributes": "{% set a = 'x.' * 99999 %}"
    "{{ range(99999)|map(attribute=a, default=1)|list|length }}",
    "select-attributes": "{% set a = 'real.' * 99999 %}{{ range(99999)|selectattr(a)|list }}",
    "equal-hashes": f"{{{{ range(0, {PRIME} * 60000, {PRIME})|unique|list|length }}}}",
    "equal-hashes-found": f"{{% set a = range(0, {PRIME} * 3000, {PRIME})|list %}}"
    f"{{{{ (a + [{PRIME} * 2999] * 90000)|unique|list|length }}}}",
    "equal-keys": f"{{% set m = {PRIME} %}}"
    f"{{{{ dict([{','.join(f'[m*{i},1]' for i in range(5_900))}])|length }}}}"
    "{{ nothing.there }}",
}


@pytest.mark.trust("T-TPL-03")
@pytest.mark.parametrize("source", LONG_STEPS.values(), ids=LONG_STEPS.keys())
def test_no_single_filter_or_call_takes_long(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at the clock."""
    longest_s = 0.0

    class Watching(template_budget.Budget):
        def step(self) -> None:
            nonlocal longest_s
            longest_s = max(longest_s, time.thread_time() - self._looked_s)
            super().step()

    monkeypatch.setattr(template_sandbox, "Budget", Watching)
    monkeypatch.setattr(template_budget, "MAX_RENDER_S", 1.0)
    template = Template(source)
    gc.disable()  # a collection in the thread counts as its time
    try:
        start_s = time.thread_time()
        with pytest.raises(PackageError):
            template.render({})
        taken_s = time.thread_time() - start_s
    finally:
        gc.enable()
    assert longest_s < template_budget.MAX_STEP_S / 2
    assert taken_s < 1.5


GROW = "{% set n = namespace(s='a') %}{% for i in range(60) %}"
GROW_LIST = "{% set n = namespace(s=[1]) %}{% for i in range(60) %}"
BOMBS = {
    "product": "{{ 'a' * 10**10 }}",
    "product-list": "{{ [1] * 10**10 }}",
    "power": "{{ 9**9**9**9 }}",
    "product-number": "{% set n = namespace(s=3) %}{% for i in range(99) %}"
    "{% set n.s = n.s * n.s %}{% endfor %}",
    "concat": GROW + "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "add": GROW + "{% set n.s = n.s + n.s %}{% endfor %}",
    "capture": GROW + "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    "macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + GROW + "{% set n.s = m(n.s) %}"
    "{% endfor %}",
    "filter-block": GROW + "{% set n.s %}{% filter upper %}{{ n.s }}{{ n.s }}{% endfilter %}"
    "{% endset %}{% endfor %}",
    "list": GROW_LIST + "{% set n.s = [n.s, n.s] %}{% endfor %}",
    "tuple": GROW_LIST + "{% set n.s = (n.s, n.s) %}{% endfor %}",
    "dict": GROW_LIST + "{% set n.s = {'a': n.s, 'b': n.s} %}{% endfor %}",
    "dict-call": GROW_LIST + "{% set n.s = dict(a=n.s, b=n.s) %}{% endfor %}",
    "list-add": GROW_LIST + "{% set n.s = n.s + n.s %}{% endfor %}",
    "literal-text": "{% for i in range(99999) %}" + "a" * 100 + "{% endfor %}",
    "replace": "{% set s = 'a' * 9999 %}{{ s.replace('a', s) }}",
    "replace-filter": "{% set s = 'a' * 9999 %}{{ s|replace('a', s) }}",
    "replace-empty": "{% set s = 'a' * 9999 %}{{ s.replace('', s) }}",
    "join": "{% set s = 'a' * 999999 %}{{ s.join(['a', 'b'] * 9) }}",
    "join-filter": "{% set s = 'a' * 999999 %}{{ ([1] * 9)|join(s) }}",
    "indent": "{{ 'a'|indent(10**9, true) }}",
    "json-depth": "{% set n = namespace(s=[[1] * 5000]) %}{% for i in range(90) %}"
    "{% set n.s = [n.s] %}{% endfor %}{{ n.s|tojson(indent=16) }}",
    "json-indent": "{{ [1]|tojson(indent=10**9) }}",
    "int-base": "{{ ('f' * 999999)|int(base=16) }}",
    "strip": "{% set s = 'a' * 999999 %}{{ s.strip('b' * 999999 ~ 'a') }}",
    "trim": "{% set s = 'a' * 999999 %}{{ s|trim('b' * 999999 ~ 'a') }}",
    "rfind": "{% set s = 'a' * 999999 %}{{ s.rfind('b' ~ s) }}",
    "rsplit": "{% set s = 'a' * 999999 %}{{ s.rsplit(sep='b' ~ s) }}",
    "strftime": "{{ strftime_now('%999999999Y') }}",
}


@pytest.mark.trust("T-TPL-03")
@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_growing_templates_are_stopped_before_they_are_large(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_budget, "MAX_RENDER_S", 10.0)  # the size must stop it
    monkeypatch.setattr(template_budget, "MAX_VALUE_ITEMS", 20_000)
    with pytest.raises(PackageError, match="was stopped: it") as caught:
        render(source)
    assert "ran for" not in caught.value.problem


def test_namespaces_that_hold_each_other_do_not_print_for_ever() -> None:
    source = "{% set n = namespace() %}{% for i in range(60) %}"
    source += "{% set n.s = namespace(a=n.s, b=n.s) %}{% endfor %}{{ n.s }}"
    assert render(source) == "<Namespace>"


MISSING = ["{{ 'a'.center(10**9) }}", "{{ 'a'.zfill(9) }}", "{{ (1).to_bytes(10**9) }}"]
UNKNOWN = ["{{ 'a'|center(9) }}", "{{ 1|filesizeformat }}", "{{ 1.5|round(10**9, 'ceil') }}"]


@pytest.mark.trust("T-TPL-02")
@pytest.mark.parametrize("source", [*MISSING, *UNKNOWN, "{{ lipsum(n=10**6) }}"])
def test_what_no_chat_template_needs_is_not_there(source: str) -> None:
    with pytest.raises(PackageError):
        render(source)


@pytest.mark.trust("T-TPL-05")
@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
        "{{ " + "not " * 9999 + "1 }}",
        "{% if x %}" * 2000 + "{% endif %}" * 2000,
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ nothing.there }}",
        "{{ range(10**10) }}",
        "x" * 300_000,
    ],
    ids=lambda source: source[:24],
)
def test_broken_templates_end_in_an_error_that_says_what_to_do(source: str) -> None:
    with pytest.raises(PackageError) as caught:
        render(source)
    assert "chat template" in caught.value.fix


@pytest.mark.trust("T-TPL-05")
def test_a_template_refuses_with_its_own_words() -> None:
    with pytest.raises(UsageError, match="'Only user and assistant'"):
        render("{{ raise_exception('Only user and assistant') }}")


@pytest.mark.trust("T-TPL-03")
def test_others_go_on_while_one_template_runs_wild() -> None:
    """The limits belong to one rendering, and the loop gives way to other threads."""
    template = Template("{{ messages[0].content }}")
    results: list[str] = []
    thread = threading.Thread(
        target=lambda: results.append(template.render({"messages": [{"content": "fine"}]}))
    )
    thread.start()
    with pytest.raises(PackageError):
        render(ENDLESS["loops"])
    thread.join()
    assert results == ["fine"]


ORDINARY = [
    ("{{ 'a' ~ 1 ~ none }}", "a1None"),
    ("{{ [1, 'x', {'a': (1, 2)}] }}", "[1, 'x', {'a': (1, 2)}]"),
    ("{{ {'b': 'ü<', 'a': [1]}|tojson }}", '{"b": "ü<", "a": [1]}'),
    ("{{ {'b': 1, 'a': 2}|tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
    ("{{ [1, 2]|tojson(separators=(',', ':')) }}", "[1,2]"),
    ("{{ ['a', 'b']|join(', ') }}{{ ', '.join(['c', 'd']) }}", "a, bc, d"),
    ("{{ messages|map(attribute='role')|join(',') }}", "user"),
    ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
    ("{{ ' x '|trim }}{{ 'xax'.strip('x') }}{{ 'a-b'|replace('-', '+') }}", "xaa+b"),
    ("{{ 'a\nb'|indent(2) }}{{ 'ab'.split('b')[0] }}", "a\n  ba"),
    ("{% set a, b = 1, 2 %}{{ a + b }}{{ 7 % 4 }}{{ 2 ** 3 }}", "338"),
    ("{% for k, v in {'a': 1}|items %}{{ k }}{{ v }}{% endfor %}", "a1"),
    (
        "{% for x in range(9) if x % 2 %}{{ x }}{% if x == 5 %}{% break %}{% endif %}{% endfor %}",
        "135",
    ),
    ("{% for x in [[1], []] %}{% for y in x %}{{ y }}{% else %}-{% endfor %}{% endfor %}", "1-"),
    ("a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc"),
    ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "x"),
    ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('y') }}", "<y>"),
    ("{{ nothing }}{{ nothing is defined }}", "False"),
    ("{{ strftime_now('%%') }}", "%"),
]


@pytest.mark.parametrize(("source", "expected"), ORDINARY, ids=[s for s, _ in ORDINARY])
def test_what_chat_templates_use_works(source: str, expected: str) -> None:
    assert render(source) == expected


@pytest.mark.trust("T-TPL-02")
@pytest.mark.parametrize(("version", "is_safe"), [("3.1.5", False), ("3.1.6", True), ("4.0", True)])
def test_a_jinja_with_known_holes_is_refused(version: str, is_safe: bool) -> None:
    if is_safe:
        _check_jinja_version(version)
        return
    with pytest.raises(PackageError, match=r"3\.1\.6 or later"):
        _check_jinja_version(version)
