"""Sample texts fit their patterns, by Python's opinion; what is not understood is left out."""

import re

import pytest

from qwen_edge.runtime.structured import GrammarCompiler, OutputFormat
from qwen_edge.runtime.structured.pattern_sample import FORMAT_SAMPLES, sample_pattern


@pytest.mark.parametrize(
    ("pattern", "sample"),
    [
        ("^[^@\\s]+@[^@\\s]+\\.[a-z]{2,3}$", "a@a.aa"),
        ("[aeiou]{2}", "aa"),
        ("a*b+c?", "b"),
        ("(aaa|b)(?:c|dd){2}", "bcc"),
        (r"\d{3}-\(x\)", "000-(x)"),
        ("[]x]", "x"),
        ("[^]a]", "0"),
        ("(?P<year>[0-9]{4})", "0000"),
        ("", ""),
        ("x|", ""),
        ("[^a-zA-Z0-9]", "-"),
        ("é{2}", "éé"),
    ],
)
def test_samples_are_short_and_fit(pattern: str, sample: str) -> None:
    assert sample_pattern(pattern) == sample
    assert re.search(pattern, sample)


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)b", r"\p{L}", r"(a)\1", "(a", "a)", "[", "[a", "\\", "a{300}", "((a{20}){20}){20}", "("],
)
def test_what_is_not_understood_has_no_sample(pattern: str) -> None:
    assert sample_pattern(pattern) is None


@pytest.mark.parametrize("kind", FORMAT_SAMPLES)
def test_the_engine_knows_every_format_and_its_sample(compiler: GrammarCompiler, kind: str) -> None:
    output = OutputFormat.json_schema({"type": "string", "format": kind})
    text = f'"{FORMAT_SAMPLES[kind]}"'.encode()
    constraint = compiler.compile(output).start()
    assert constraint.count_valid(list(text)) == len(text)
    assert constraint.count_valid(list(b'"not one of these"')) < 18
