"""Medians and shares, from rounds whose figures are known."""

import dataclasses

import pytest

from qwen_edge.runtime.benchmark.cold_start import ColdStart
from qwen_edge.runtime.benchmark.figures import (
    AnswerTimes,
    BenchmarkResult,
    Round,
    median_roofline,
    summarise,
)
from qwen_edge.runtime.benchmark.report import COLUMNS, table_rows, tell_facts
from qwen_edge.runtime.benchmark.work import ModelWork
from qwen_edge.runtime.machine.process_memory import ProcessMemory
from qwen_edge.runtime.machine.roofline import Roofline

WORK = ModelWork(
    weights_bytes=1_000, cache_bytes_per_token=0, weight_macs=50, attention_macs_per_token=0
)
# In the second round the machine was half as fast at everything, in the third the model alone.
ROUNDS = (
    Round((AnswerTimes(2.0, 1.0),), Roofline(20_000.0, 1_000.0)),
    Round((AnswerTimes(4.0, 2.0),), Roofline(10_000.0, 500.0)),
    Round((AnswerTimes(8.0, 4.0),), Roofline(20_000.0, 1_000.0)),
)


def make_result(**changes: object) -> BenchmarkResult:
    """Return a result with these rounds."""
    starts = tuple(ColdStart(total, 0.1, 0.2, 1.0, total - 1.3, 10**9) for total in (9.0, 5.0, 6.0))
    result = BenchmarkResult(
        model="some-model",
        backend="openvino",
        device="CPU",
        device_reason="first of the profile",
        new_tokens=11,
        left_out=(),
        cold_starts=starts,
        load_s=1.0,
        loaded_memory=ProcessMemory(2 * 10**9, 10**9),
        memory=ProcessMemory(3 * 10**9, 10**9),
        lengths=summarise((8,), 11, ROUNDS, WORK),
        roofline=median_roofline(entry.roofline for entry in ROUNDS),
        rounds=ROUNDS,
    )
    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]


def test_speeds_are_medians_and_shares_those_of_their_own_round() -> None:
    [figures] = summarise((8,), 11, ROUNDS, WORK)
    assert (figures.prompt_tokens, figures.ttft_s) == (8, 4.0)
    assert figures.prefill_tokens_per_s == 2.0
    assert figures.decode_tokens_per_s == 5.0
    # Half of what the machine could do in the first two rounds; of medians it would be 0.25.
    assert figures.decode_share == 0.5
    assert figures.prefill_share == pytest.approx(0.2)


def test_without_limits_there_are_no_shares() -> None:
    rounds = [dataclasses.replace(entry, roofline=None) for entry in ROUNDS]
    [figures] = summarise((8,), 11, rounds, WORK)
    assert figures.decode_share is None and figures.prefill_share is None
    assert median_roofline(entry.roofline for entry in rounds) is None


def test_limits_are_medians_too_and_one_may_be_missing() -> None:
    assert median_roofline([Roofline(1.0, None), None, Roofline(3.0, None)]) == Roofline(2.0, None)
    assert median_roofline([Roofline(1.0, 5.0), Roofline(1.0, None)]) == Roofline(1.0, 5.0)


def test_the_start_in_the_middle_is_told() -> None:
    assert make_result().cold_start == make_result().cold_starts[2]
    assert make_result(cold_starts=()).cold_start is None


def test_a_person_is_told_everything_that_was_measured() -> None:
    result = make_result()
    [row] = table_rows(result)
    assert len(row) == len(COLUMNS)
    assert row == ["8", "4 s", "2.0", "20%", "5.0", "50%"]
    text = "\n".join(tell_facts(result))
    assert "Cold start: 6.0 s" in text and "median of 3" in text
    assert "3.0 GB private" in text and "when loaded 2.0 GB private" in text
    assert "20.0 kB/s of memory" in text
    assert "Medians of 3 rounds; answers of 11 tokens." in text
    assert "Left out" not in text


def test_what_was_not_measured_is_not_told_as_a_figure() -> None:
    [figures] = make_result().lengths
    result = make_result(
        device="GPU",
        cold_starts=(),
        memory=None,
        roofline=None,
        rounds=ROUNDS[:1],
        left_out=(512, 2048),
        lengths=(dataclasses.replace(figures, decode_share=None, prefill_share=None),),
    )
    assert table_rows(result)[0][3::2] == ["–", "–"]
    text = "\n".join(tell_facts(result))
    assert "those of GPU are not measured" in text
    assert "Left out, since they do not fit the context: 512, 2,048 tokens." in text
    assert "Cold start" not in text and "Memory" not in text
    assert "Medians of 1 round;" in text
