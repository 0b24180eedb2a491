"""Settings come out of a table with value and reason, or leave a problem behind."""

import datetime

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.profiles.table import Setting, TableReader, refuse_problems


@pytest.mark.parametrize(
    ("raw", "kind", "expected"),
    [
        (1, int, Setting(1, "mine")),
        (True, bool, Setting(True, "mine")),
        ({"value": "x", "reason": "why"}, str, Setting("x", "why")),
        ({"value": "x"}, str, Setting("x", "mine")),
    ],
)
def test_a_good_value_has_its_reason(raw: object, kind: type, expected: Setting) -> None:
    problems: list[str] = []
    assert TableReader({"k": raw}, "", "mine", problems).setting("k", kind) == expected
    assert problems == []


@pytest.mark.parametrize(
    ("raw", "kind", "expected"),
    [
        (True, int, "CPU: k is true; expected a whole number"),
        (1, bool, "CPU: k is 1; expected true or false"),
        (1.5, int, "CPU: k is 1.5; expected a whole number"),
        (datetime.date(2026, 1, 2), str, "expected a text"),
        ([1] * 100, int, "1, 1,…; expected a whole number"),
        ({"value": 1, "reason": ""}, int, "CPU: k: reason is ''; expected one line of text"),
        ({"reason": "x"}, int, "CPU: k has no 'value'"),
    ],
)
def test_a_bad_value_leaves_a_problem(raw: object, kind: type, expected: str) -> None:
    problems: list[str] = []
    TableReader({"k": raw}, "CPU: ", "mine", problems).setting("k", kind)
    assert len(problems) == 1
    assert expected in problems[0]


def test_an_absent_key_is_no_problem() -> None:
    problems: list[str] = []
    reader = TableReader({}, "", None, problems)
    assert (reader.setting("k", int), reader.plain_text("k"), reader.texts("k")) == (None, None, ())
    assert problems == []


def test_plain_values_are_for_own_files_only() -> None:
    """The catalog itself must give a reason everywhere: the same reader, told so."""
    problems: list[str] = []
    reader = TableReader({"n": 1, "m": {"value": 2}}, "", None, problems)
    assert reader.setting("n", int) is None
    assert reader.setting("m", int) is None
    assert problems == ["n has no 'reason'", "m has no 'reason'"]


def test_many_problems_are_counted_and_kept() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_problems("The file 'x'", [f"problem {n}." for n in range(12)], "mend it")
    assert caught.value.problem.startswith("The file 'x' has 12 problems: problem 0; problem 1;")
    assert caught.value.problem.endswith("and 4 more.")
    assert len(caught.value.facts["problems"]) == 12  # type: ignore[arg-type]
    refuse_problems("The file 'x'", [], "nothing to mend")
