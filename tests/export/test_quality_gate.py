"""Gates: what can be written, what passes, and when a model counts as lost."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import UsageError
from qwen_edge.export import ExportRequest
from qwen_edge.export.quality.gate import LOST_KL, Gate, is_lost, parse_gate
from qwen_edge.runtime.quality_facts import (
    IntervalFacts,
    QualityFacts,
    ReadingFacts,
    describe_quality,
)


def at(value: float) -> IntervalFacts:
    return IntervalFacts(value, value / 2, value)


READING = ReadingFacts(at(0.04), at(0.3), at(0.9), at(0.8), at(12.0), 1.02)
FACTS = QualityFacts("built-in", "0" * 64, 3_000, at(11.8), READING, None, None, None)


def with_kl(kl: float) -> ReadingFacts:
    return replace(READING, kl=at(kl))


@pytest.mark.parametrize(
    ("text", "misses"),
    [
        ("kl=0.05,kl_p99=0.3,top1=0.9,top5=0.8,ppl=1.02", 0),
        (" kl = 0.05 , top1 = 9e-1 ", 0),
        ("kl=0.039", 1),
        ("kl_p99=0.29", 1),
        ("top1=0.91", 1),
        ("top5=0.81", 1),
        ("ppl=1.01", 1),
        ("kl=0,top1=1", 2),
    ],
)
def test_what_passes(text: str, misses: int) -> None:
    assert len(parse_gate(text).find_misses(FACTS)) == misses


def test_a_miss_names_figure_and_bound() -> None:
    assert parse_gate("top1=0.95").find_misses(FACTS) == [
        "share of the same likeliest token is 0.9, at least 0.95 was asked for"
    ]


def test_as_it_runs_counts_before_the_weights() -> None:
    run = replace(FACTS, as_run=with_kl(0.2), device="CPU with OpenVINO")
    assert parse_gate("kl=0.1").find_misses(FACTS) == []
    assert len(parse_gate("kl=0.1").find_misses(run)) == 1
    assert "as it runs on CPU with OpenVINO" in describe_quality(run)
    assert "by its weights alone" in describe_quality(FACTS)


def test_a_perplexity_beyond_numbers_passes_no_gate() -> None:
    lost = replace(FACTS, weights=replace(READING, perplexity=None, perplexity_ratio=None))
    assert len(parse_gate("ppl=1e300").find_misses(lost)) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no figure ''"),
        ("kL=0.1", "did you mean 'kl'"),
        ("top=0.1", "did you mean 'top"),
        ("size=3", "known are kl, kl_p99, top1, top5, ppl"),
        ("kl", "'kl' has no bound"),
        ("kl=", "'kl' has the bound ''"),
        ("kl=nan", "'kl' has the bound 'nan'"),
        ("kl=inf", "expected a number of 0 or more"),
        ("kl=-1", "expected a number of 0 or more"),
        ("top1=95", "expected a number from 0 to 1"),
        ("kl=1,kl=2", "'kl' stands there twice"),
        ("top1=2,kl", "'top1' has the bound '2'"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    assert told in caught.value.problem
    assert "kl=0.05" in caught.value.fix
    with pytest.raises(UsageError):
        ExportRequest(gate=text)


def test_all_problems_of_a_gate_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate("top1=2,kl,x=1")
    problems = caught.value.facts["problems"]
    assert isinstance(problems, tuple) and len(problems) == 3


KEYS = st.sampled_from(["kl", "kl_p99", "top1", "top5", "ppl"])


@given(st.dictionaries(KEYS, st.integers(0, 1_000).map(lambda n: n / 1_000), min_size=1))
def test_a_gate_is_read_back_as_it_is_written(limits: dict[str, float]) -> None:
    assert parse_gate(str(Gate(limits))) == Gate(limits)


@given(KEYS, st.floats(0, 1), st.floats(0, 1))
def test_a_wider_gate_lets_through_what_a_narrow_one_does(key: str, a: float, b: float) -> None:
    narrow, wide = (min(a, b), max(a, b)) if key not in {"top1", "top5"} else (max(a, b), min(a, b))
    if not Gate({key: narrow}).find_misses(FACTS):
        assert Gate({key: wide}).find_misses(FACTS) == []


def test_a_model_is_lost_by_any_reading() -> None:
    assert not is_lost(replace(FACTS, weights=with_kl(LOST_KL)))
    assert is_lost(replace(FACTS, weights=with_kl(0.51)))
    assert is_lost(replace(FACTS, as_run=with_kl(0.51), device="CPU"))
    # Also where better arithmetic happens to hide it.
    assert is_lost(replace(FACTS, weights=with_kl(0.51), as_run=with_kl(0.49), device="CPU"))


@pytest.mark.parametrize(
    "options",
    [
        {"skip_quality": True, "gate": "kl=1"},
        {"accept_loss": True, "gate": "kl=1"},
    ],
)
def test_wishes_that_contradict_each_other_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="contradict"):
        ExportRequest(**options)  # type: ignore[arg-type]
