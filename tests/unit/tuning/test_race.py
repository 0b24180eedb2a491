"""Races: who wins, when it is over, and that chance seldom decides."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.tuning.race import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    Interval,
    RoundPlan,
    Runner,
    find_interval,
    judge,
    plan_rounds,
    race,
)

MakeRunner = Callable[..., Runner]


def test_twice_as_fast_is_clear_after_the_least_rounds(
    make_runner: MakeRunner, plan: RoundPlan
) -> None:
    result = race(make_runner(0.2, 0.2, 0.01), make_runner(0.1, 0.1, 0.01, 1), plan)
    assert (result.outcome, result.num_rounds) == ("faster", MIN_ROUNDS)
    assert result.interval.gain == pytest.approx(2, rel=0.05)
    assert result.challenger.prefill_token_s == pytest.approx(0.1, rel=0.05)
    assert result.champion.decode_token_s == pytest.approx(0.2, rel=0.05)


def test_the_workload_decides_what_is_faster(make_runner: MakeRunner, plan: RoundPlan) -> None:
    reader, writer = make_runner(0.01, 0.2, 0.01), make_runner(0.02, 0.1, 0.01, 1)
    reads = replace(plan, workload=replace(plan.workload, prompt_tokens=100_000))
    assert race(reader, writer, plan).outcome == "faster"
    assert race(reader, writer, reads).outcome == "not faster"


def test_equal_runners_do_not_take_each_others_place(
    make_runner: MakeRunner, plan: RoundPlan
) -> None:
    """With noise of 3 % a round; at most 4 of 100 win by chance, see the module."""
    outcomes = [
        race(make_runner(1, 1, 0.03, 2 * n), make_runner(1, 1, 0.03, 2 * n + 1), plan).outcome
        for n in range(60)
    ]
    assert outcomes.count("faster") <= 6


def test_a_gain_of_a_twentieth_is_found(make_runner: MakeRunner, plan: RoundPlan) -> None:
    results = [
        race(make_runner(1.05, 1.05, 0.02, 2 * n), make_runner(1, 1, 0.02, 2 * n + 1), plan)
        for n in range(20)
    ]
    assert [result.outcome for result in results].count("faster") >= 18


def test_less_than_a_hundredth_is_no_gain(make_runner: MakeRunner, plan: RoundPlan) -> None:
    result = race(make_runner(1.005, 1.005, 1e-6), make_runner(1, 1, 1e-6, 1), plan)
    assert result.outcome == "not faster"


def test_time_ends_a_race_but_not_before_its_least_rounds(
    make_runner: MakeRunner, plan: RoundPlan
) -> None:
    clock = count()
    noisy = race(
        make_runner(1, 1, 0.5),
        make_runner(1, 1, 0.5, 1),
        plan,
        deadline_s=0,
        clock=lambda: float(next(clock)),
    )
    assert (noisy.outcome, noisy.num_rounds) == ("not clear", MIN_ROUNDS)


def test_rounds_are_in_turn_and_change_who_begins(make_runner: MakeRunner, plan: RoundPlan) -> None:
    order: list[str] = []
    first, second = make_runner(1, 1), make_runner(1, 1)
    first.calls = Notes(order, "a")  # type: ignore[attr-defined]
    second.calls = Notes(order, "b")  # type: ignore[attr-defined]
    race(first, second, plan)
    one = ["a prefill 64", "b prefill 64", *["a decode 4", "b decode 4"], *["b decode 4"]]
    assert order[:5] == one
    assert order[10:12] == ["b prefill 64", "a prefill 64"]


def test_one_at_a_time_lets_go_after_each(make_runner: MakeRunner, plan: RoundPlan) -> None:
    order: list[str] = []
    first, second = make_runner(1, 1), make_runner(2, 2)
    first.calls = Notes(order, "a")  # type: ignore[attr-defined]
    second.calls = Notes(order, "b")  # type: ignore[attr-defined]
    result = race(first, second, replace(plan, one_at_a_time=True))
    assert order[:3] == ["a prefill 64", "a decode 16", "a rest"]
    assert order[3:9] == [f"b {what}" for what in ("prefill 64", "decode 16", "rest")] * 2
    assert result.outcome == "not faster"


def test_a_fast_model_is_measured_for_longer(make_runner: MakeRunner, plan: RoundPlan) -> None:
    quick, seen = plan_rounds(make_runner(1e-5, 1e-3), plan)
    assert (quick.num_prefills, quick.num_decode_tokens) == (8, 128)
    assert seen.decode_token_s == pytest.approx(1e-3)
    slow, _ = plan_rounds(make_runner(0.02, 0.1), plan)
    assert (slow.num_prefills, slow.num_decode_tokens) == (1, 16)


def test_prompts_differ_from_round_to_round_and_not_from_run_to_run(plan: RoundPlan) -> None:
    assert plan.make_prompt(1) == plan.make_prompt(1) != plan.make_prompt(2)
    assert all(0 <= token_id < plan.vocab_size for token_id in plan.make_prompt(3))


@given(st.lists(st.floats(-2, 2), min_size=MIN_ROUNDS, max_size=MAX_ROUNDS))
def test_intervals_hold_their_middle_and_turn_over(log_ratios: list[float]) -> None:
    interval = find_interval(log_ratios)
    assert interval.low <= interval.gain * (1 + 1e-9) and interval.gain <= interval.high * (
        1 + 1e-9
    )
    turned = find_interval([-value for value in log_ratios])
    assert turned.gain == pytest.approx(1 / interval.gain)
    assert turned.low == pytest.approx(1 / interval.high)
    assert {judge(interval), judge(turned)} != {"faster"}


@pytest.mark.parametrize(
    ("gain", "low", "high", "outcome"),
    [
        (1.02, 1.001, 1.04, "faster"),
        (1.02, 0.999, 1.04, "not clear"),
        (1.009, 1.001, 1.02, "not clear"),
        (1.005, 1.001, 1.009, "not faster"),
        (0.9, 0.8, 1.009, "not faster"),
        (0.9, 0.8, 1.011, "not clear"),
    ],
)
def test_the_rule(gain: float, low: float, high: float, outcome: str) -> None:
    assert judge(Interval(gain, low, high)) == outcome


def test_the_interval_is_students() -> None:
    interval = find_interval([0.0, 0.1, 0.2])
    half = 9.925 * 0.1 / math.sqrt(3)
    assert math.log(interval.gain) == pytest.approx(0.1)
    assert math.log(interval.high) == pytest.approx(0.1 + half)


class Notes(list[str]):
    """Notes who was called for what, in one list for all."""

    def __init__(self, order: list[str], name: str) -> None:
        super().__init__()
        self._order, self._name = order, name

    def append(self, call: str) -> None:
        """Note one call."""
        self._order.append(f"{self._name} {call}")
