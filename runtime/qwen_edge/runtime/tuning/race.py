"""When one setting is faster than another: rounds in turn, until the difference is clear.

Machines have slow seconds, so nothing is compared across time: in every round both read a prompt
and write a few tokens, one right after the other, changing who goes first, and what counts is the
ratio of their times within the round.

The rule: after each round, from the third on, the 99 % interval of the mean log ratio (Student's
t) is looked at. The challenger is faster when the whole of it is above 1 and its middle gains 1 %
or more; it is not faster when all of it lies below a gain of 1 %. If neither is so after the last
round or when the time is up, the difference is not clear, and what was there before is kept.
Looking again and again makes the rule weaker than 99 %: of two equal settings, the challenger wins
at most 4 times in 100 (simulated, noise of 1, 3 and 8 % a round). A gain of 5 % is seen after some
6 rounds where the noise is 3 %.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Literal, Protocol

import numpy as np

from qwen_edge.runtime.tuning.workload import Workload

Outcome = Literal["faster", "not faster", "not clear"]
Clock = Callable[[], float]

MIN_GAIN = 1.01
MIN_ROUNDS = 3
MAX_ROUNDS = 31
# Two-sided 99 % quantiles of Student's t with 2, 3, … degrees of freedom.
_T_99 = (
    9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106,
    3.055, 3.012, 2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845, 2.831,
    2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750,
)  # fmt: skip
_NUM_SLICES = 4  # times that decoding changes hands in a round
_MIN_PREFILL_S, _MIN_DECODE_S = 0.1, 0.4
_MAX_DECODE_TOKENS, _MAX_PREFILLS = 128, 8
_TICK_S = 1e-6


class Runner(Protocol):
    """A model that runs with one candidate's settings."""

    def prefill(self, token_ids: Sequence[int]) -> float:
        """Read a prompt into an empty cache; return the seconds it took."""
        ...

    def decode(self, num_tokens: int) -> float:
        """Write tokens after what is in the cache; return the seconds it took."""
        ...

    def rest(self) -> None:
        """Let go of memory until it is needed again."""
        ...


@dataclass(frozen=True)
class Sample:
    """Seconds of one token of a prompt and of one token of an answer."""

    prefill_token_s: float
    decode_token_s: float


@dataclass(frozen=True)
class RoundPlan:
    """What is measured in a round.

    Args:
        workload: What to be fast at.
        prompt_tokens: Length of the prompt.
        vocab_size: Prompts are random ids below it; speed does not depend on them.
        num_prefills: Times the prompt is read.
        num_decode_tokens: Tokens written, a multiple of the times that decoding changes hands.
        one_at_a_time: Memory holds one model only: each is opened for its part of a round.
    """

    workload: Workload
    prompt_tokens: int
    vocab_size: int
    num_prefills: int = 1
    num_decode_tokens: int = 16
    one_at_a_time: bool = False

    def make_prompt(self, number: int) -> list[int]:
        """Return the prompt of a round."""
        generator = np.random.default_rng(number)
        ids = generator.integers(0, self.vocab_size, self.prompt_tokens)
        prompt: list[int] = ids.tolist()
        return prompt


@dataclass(frozen=True)
class Interval:
    """How many times as fast the challenger is: the middle, and 99 % limits of it."""

    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class RaceResult:
    """What a race came to.

    Args:
        outcome: For the challenger.
        interval: Of its gain.
        champion: The champion's median figures.
        challenger: The challenger's.
        num_rounds: How many were run.
    """

    outcome: Outcome
    interval: Interval
    champion: Sample
    challenger: Sample
    num_rounds: int


def plan_rounds(runner: Runner, least: RoundPlan) -> tuple[RoundPlan, Sample]:
    """Choose how much to measure in a round, so that the clock can tell it from nothing.

    Args:
        runner: Warm.
        least: What is measured at least.

    Returns:
        The plan, and what the runner needed while it was made.
    """
    seen = _measure_alone(runner, least, least.make_prompt(0))
    prefill_s = max(seen.prefill_token_s * least.prompt_tokens, _TICK_S)
    num_prefills = min(math.ceil(_MIN_PREFILL_S / prefill_s), _MAX_PREFILLS)
    num_tokens = math.ceil(_MIN_DECODE_S / max(seen.decode_token_s, _TICK_S))
    num_tokens = min(max(num_tokens, least.num_decode_tokens), _MAX_DECODE_TOKENS)
    plan = replace(
        least,
        num_prefills=max(num_prefills, least.num_prefills),
        num_decode_tokens=num_tokens // _NUM_SLICES * _NUM_SLICES,
    )
    return plan, seen


def race(
    champion: Runner,
    challenger: Runner,
    plan: RoundPlan,
    *,
    deadline_s: float = math.inf,
    clock: Clock = time.monotonic,
) -> RaceResult:
    """Run rounds until the difference is clear, there were enough of them, or the time is up.

    Args:
        champion: What is kept in case of doubt.
        challenger: What may take its place.
        plan: What is measured.
        deadline_s: On the clock; the least number of rounds is run in any case.
        clock: Seconds.
    """
    samples: list[tuple[Sample, Sample]] = []
    while True:
        samples.append(_run_round((champion, challenger), plan, len(samples)))
        if len(samples) < MIN_ROUNDS:
            continue
        interval = find_interval(_log_ratios(samples, plan.workload))
        outcome = judge(interval)
        is_over = len(samples) == MAX_ROUNDS or clock() >= deadline_s
        if outcome != "not clear" or is_over:
            before, after = zip(*samples, strict=True)
            return RaceResult(outcome, interval, _middle(before), _middle(after), len(samples))


def find_interval(log_ratios: Sequence[float]) -> Interval:
    """Return the mean of log ratios and its 99 % limits, as ratios.

    Args:
        log_ratios: From `MIN_ROUNDS` to `MAX_ROUNDS` of them.
    """
    count = len(log_ratios)
    middle = fmean(log_ratios)
    half = _T_99[count - MIN_ROUNDS] * stdev(log_ratios) / math.sqrt(count)
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def judge(interval: Interval) -> Outcome:
    """Say what an interval means for the challenger."""
    if interval.high < MIN_GAIN:
        return "not faster"
    if interval.low > 1.0 and interval.gain >= MIN_GAIN:
        return "faster"
    return "not clear"


def _log_ratios(samples: Sequence[tuple[Sample, Sample]], workload: Workload) -> list[float]:
    """Return the logarithm of how many times as fast the challenger was, for each round."""
    return [
        math.log(_seconds(champion, workload) / _seconds(challenger, workload))
        for champion, challenger in samples
    ]


def _seconds(sample: Sample, workload: Workload) -> float:
    return workload.seconds(sample.prefill_token_s, sample.decode_token_s)


def _middle(samples: Sequence[Sample]) -> Sample:
    return Sample(
        median(sample.prefill_token_s for sample in samples),
        median(sample.decode_token_s for sample in samples),
    )


def _run_round(
    runners: tuple[Runner, Runner], plan: RoundPlan, number: int
) -> tuple[Sample, Sample]:
    """Measure both on one prompt; who goes first changes from round to round."""
    prompt = plan.make_prompt(number + 1)
    order = (0, 1) if number % 2 == 0 else (1, 0)
    if plan.one_at_a_time:
        alone = {}
        for index in order:
            alone[index] = _measure_alone(runners[index], plan, prompt)
            runners[index].rest()
        return alone[0], alone[1]
    prefill_s, decode_s = [0.0, 0.0], [0.0, 0.0]
    for turn in range(plan.num_prefills):
        for index in order if turn % 2 == 0 else order[::-1]:
            prefill_s[index] += runners[index].prefill(prompt)
    slice_tokens = plan.num_decode_tokens // _NUM_SLICES
    for turn in range(_NUM_SLICES):
        for index in order if turn % 2 == 0 else order[::-1]:
            decode_s[index] += runners[index].decode(slice_tokens)
    return _sample(prefill_s[0], decode_s[0], plan), _sample(prefill_s[1], decode_s[1], plan)


def _measure_alone(runner: Runner, plan: RoundPlan, prompt: Sequence[int]) -> Sample:
    prefill_s = sum(runner.prefill(prompt) for _ in range(plan.num_prefills))
    return _sample(prefill_s, runner.decode(plan.num_decode_tokens), plan)


def _sample(prefill_s: float, decode_s: float, plan: RoundPlan) -> Sample:
    num_read = plan.num_prefills * plan.prompt_tokens
    return Sample(prefill_s / num_read, decode_s / plan.num_decode_tokens)
