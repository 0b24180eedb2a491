"""Patterns and grammars are measured before the engine sees them."""

import pytest

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.structured.pattern_limits import check_lark, measure_pattern


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        ("abc", 3),
        ("a*", 1),
        ("a{5}", 5),
        ("a{0,9}", 1),
        ("(ab){3}c", 7),
        ("a|bbb|cc", 3),
        ("(a|b{4}){2}", 8),
        (r"\(\)\{9\}", 5),
        ("[(]{2}[^]|)]", 3),
        ("((a{2}){2}){2}", 8),
        ("", 0),
        ("a)", 2),
        ("[", 1),
        ("\\", 1),
    ],
)
def test_every_part_counts_as_often_as_it_must_come(pattern: str, length: int) -> None:
    assert measure_pattern(pattern, where="x") == length


@pytest.mark.trust("T-SRV-08")
@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("a" * 8_193, "characters"),
        ("(" * 60 + "a" + ")" * 60, "nested groups"),
        ("(a{1000}){1000}", "repeated items"),
        ("((a{100}b){100}c){100}", "repeated items"),
        ("a{1,10000000}", "repetitions of one item"),
        ("(" * 30_000, "characters"),
    ],
)
def test_what_would_explode_is_refused_with_both_numbers(pattern: str, what: str) -> None:
    with pytest.raises(GrammarError) as caught:
        measure_pattern(pattern, where="The pattern")
    assert what in caught.value.problem
    assert caught.value.facts["found"] > caught.value.facts["limit"]  # type: ignore[operator]


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "a"\n' * 24_000,
        "start: " + "(" * 60 + '"a"' + ")" * 60,
        "start: A\nA: " + " & ".join(["/a/"] * 10),
        'start: "a"{100000000}',
        'start: "a"{30000}',
        "start: /(a{1000}){1000}/",
        "\n".join(f'r{index}: "a"' for index in range(2_001)),
    ],
)
def test_grammars_that_would_explode_are_refused(grammar: str) -> None:
    with pytest.raises(GrammarError):
        check_lark(grammar)


def test_what_is_quoted_in_a_grammar_is_not_structure() -> None:
    brackets = "(" * 60
    check_lark(f'start: "{brackets}&&&&&&&&&&&" /[{brackets}]+/ // {brackets}')
