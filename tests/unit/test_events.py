"""Timings: rates are told only where they mean something."""

import dataclasses

import pytest

from qwen_edge.runtime.events import Event, Timings


def test_rates() -> None:
    timings = Timings(
        prompt_tokens=100,
        reused_tokens=40,
        prefill_tokens=60,
        decode_tokens=11,
        ttft_s=2.0,
        total_s=7.0,
    )
    assert timings.prefill_tokens_per_s == 30.0
    assert timings.decode_tokens_per_s == 2.0


@pytest.mark.parametrize(
    "timings",
    [Timings(), Timings(ttft_s=1.0, decode_tokens=1, total_s=1.0)],
    ids=["nothing", "one-token"],
)
def test_no_rate_from_fewer_than_two_tokens(timings: Timings) -> None:
    assert timings.decode_tokens_per_s is None


def test_events_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Event("answer").text = "x"  # type: ignore[misc]
