"""Which settings are tried, in which order, and which are kept.

A champion, at first the package's own settings, meets one challenger at a time, which differs from
it in one axis. Whoever is too far from the reference is out before anything is timed; whoever is
clearly faster takes the champion's place, and when an axis has changed something, the axes are gone
through again. A champion that came about in several steps has to prove itself against the
package's own settings at the end: each step may have been luck.

How models are opened, scored and raced is the `Lab`'s business: `engine_lab.py`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from qwen_edge.errors import DeviceError, ParityError, ResourceError
from qwen_edge.runtime.tuning.candidate import Axis, Candidate, describe_changes
from qwen_edge.runtime.tuning.divergence import Divergence
from qwen_edge.runtime.tuning.race import RaceResult, Runner, Sample
from qwen_edge.runtime.tuning.result import Verdict

_LOGGER = logging.getLogger(__name__)
_MAX_PASSES = 3
# What only one candidate may have; of a damaged package no other one is right either.
_REFUSALS = (DeviceError, ParityError, ResourceError)

RunnerT = TypeVar("RunnerT", bound=Runner)


class Lab(Protocol[RunnerT]):
    """Opens candidates and measures them."""

    def check(self, candidate: Candidate) -> None:
        """Raise EdgeError where a candidate is not to be tried at all."""
        ...

    def open(self, candidate: Candidate, beside: RunnerT | None) -> RunnerT:
        """Make a candidate ready; raises EdgeError where that cannot be."""
        ...

    def resolve(self, runner: RunnerT) -> Mapping[str, str]:
        """Return what the engine made of a candidate's settings."""
        ...

    def measure_divergence(self, runner: RunnerT) -> Divergence:
        """Return how far it is from the reference."""
        ...

    def race(self, champion: RunnerT, challenger: RunnerT, deadline_s: float) -> RaceResult:
        """Compare two; a race that has begun is not cut off before its least rounds."""
        ...

    def clock(self) -> float:
        """Return seconds."""
        ...


@dataclass(frozen=True)
class Attempt:
    """A candidate, and what became of it."""

    candidate: Candidate
    verdict: Verdict
    reason: str
    divergence: Divergence | None = None
    race: RaceResult | None = None


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        chosen: Fastest within the budget.
        gain: How many times as fast as the base; 1 where the base is chosen.
        before: Figures of the base.
        after: Figures of the chosen.
        attempts: All that was looked at, the base first.
        not_tried: Changes that the time did not suffice for.
        divergences: By `Candidate.numbers_key`.
    """

    chosen: Candidate
    gain: float
    before: Sample
    after: Sample
    attempts: tuple[Attempt, ...]
    not_tried: tuple[str, ...]
    divergences: Mapping[tuple[object, ...], Divergence]


class Search(Generic[RunnerT]):
    """One search, from the base to what is chosen.

    Args:
        lab: Measures.
        base: The package's own settings.
        exact: Settings within any budget, from which to start where the base is not.
        max_kl: What the divergence may come to.
        deadline_s: On the lab's clock.
        race_s: What one race may take of it.
        report: Is told each step in a line for a person.

    State:
        At most two runners are open at a time.
    """

    def __init__(
        self,
        lab: Lab[RunnerT],
        *,
        base: Candidate,
        exact: Candidate,
        max_kl: float,
        deadline_s: float,
        race_s: float,
        report: Callable[[str], None],
    ) -> None:
        self._lab = lab
        self._base, self._exact = base, exact
        self._max_kl = max_kl
        self._deadline_s, self._race_s = deadline_s, race_s
        self._report = report
        self._seen: set[tuple[object, ...]] = set()
        self._attempts: list[Attempt] = []
        self._not_tried: dict[str, None] = {}
        self._divergences: dict[tuple[object, ...], Divergence] = {}
        self._longest_trial_s = 0.0
        self._is_base_allowed = True
        # The race by which the champion took the base's place, where it was that.
        self._met_base: RaceResult | None = None
        self._has_changed = False

    def run(self, axes: Sequence[Axis], base_figures: Callable[[RunnerT], Sample]) -> Found:
        """Search.

        Args:
            axes: What may be changed.
            base_figures: Measures the base alone, before the first race.

        Raises:
            EdgeError: The package's own settings cannot be run.
        """
        started_s = self._lab.clock()
        champion, candidate = self._lab.open(self._base, None), self._base
        try:
            self._seen.add(self._base.key)
            divergence = self._score(champion, self._base)
            before = base_figures(champion)
            self._longest_trial_s = self._lab.clock() - started_s
            told = self._describe_excess(divergence)
            if told is None:
                self._note(self._base, "package", "the package's own settings", divergence)
            else:
                self._note(self._base, "too inexact", told, divergence)
                champion, candidate = self._start_exact(champion), self._exact
            champion, candidate = self._climb(champion, candidate, axes)
            return self._finish(champion, candidate, before)
        finally:
            champion.rest()

    def _start_exact(self, base: RunnerT) -> RunnerT:
        """Return a champion of exact arithmetic: the package's own settings are out."""
        self._is_base_allowed = False
        base.rest()
        champion = self._lab.open(self._exact, None)
        self._seen.add(self._exact.key)
        divergence = self._score(champion, self._exact)
        self._note(self._exact, "start", "the most exact arithmetic, to start from", divergence)
        return champion

    def _climb(
        self, champion: RunnerT, candidate: Candidate, axes: Sequence[Axis]
    ) -> tuple[RunnerT, Candidate]:
        for number in range(_MAX_PASSES):
            before = candidate
            for axis in axes:
                champion, candidate = self._go_along(champion, candidate, axis)
            if candidate == before:
                break
            _LOGGER.debug("Pass %d ended with %s", number + 1, candidate)
        return champion, candidate

    def _go_along(
        self, champion: RunnerT, candidate: Candidate, axis: Axis
    ) -> tuple[RunnerT, Candidate]:
        """Let every option of one axis challenge the champion."""
        for option in axis.options:
            changed = candidate.with_option(option)
            if changed.key in self._seen:
                continue
            if not self._has_time():
                self._not_tried[describe_changes(changed.changes_from(self._base))] = None
                continue
            self._seen.add(changed.key)
            started_s = self._lab.clock()
            winner = self._challenge(champion, candidate, changed)
            self._longest_trial_s = max(self._longest_trial_s, self._lab.clock() - started_s)
            if winner is not None:
                champion, candidate = winner, changed
        return champion, candidate

    def _challenge(
        self, champion: RunnerT, candidate: Candidate, changed: Candidate
    ) -> RunnerT | None:
        """Return the challenger's runner where it takes the champion's place."""
        self._report(f"trying {describe_changes(changed.changes_from(self._base))}")
        shares = changed.properties == candidate.properties
        try:
            self._lab.check(changed)
            challenger = self._lab.open(changed, champion if shares else None)
            is_same = self._lab.resolve(challenger) == self._lab.resolve(champion)
        except _REFUSALS as error:
            self._note(changed, "refused", error.problem)
            return None
        keeps = False
        try:
            if is_same:
                self._note(changed, "same", "the engine makes no difference of it here")
                return None
            divergence = self._score(challenger, changed)
            told = self._describe_excess(divergence)
            if told is not None:
                self._note(changed, "too inexact", told, divergence)
                return None
            result = self._race(champion, challenger)
            self._note(changed, result.outcome, _describe_race(result), divergence, result)
            keeps = result.outcome == "faster"
        except _REFUSALS as error:
            self._note(changed, "refused", error.problem)
            return None
        finally:
            if not keeps:
                challenger.rest()
        if not keeps:
            return None
        champion.rest()
        self._met_base = result if candidate == self._base else None
        self._has_changed = True
        return challenger

    def _finish(self, champion: RunnerT, candidate: Candidate, before: Sample) -> Found:
        """Prove what was found against the package's own settings, and put it together."""
        if candidate == self._base:
            figures = self._last_figures() or before
            return self._found(self._base, 1.0, figures, figures)
        met = self._met_base
        if met is None:
            self._report("comparing what was found with the package's own settings")
            base = self._lab.open(self._base, None)
            try:
                met = self._race(base, champion)
            finally:
                base.rest()
            if met.outcome != "faster" and self._is_base_allowed:
                self._note(candidate, "not clear", f"at the end: {_describe_race(met)}", None, met)
                return self._found(self._base, 1.0, met.champion, met.champion)
        return self._found(candidate, met.interval.gain, met.champion, met.challenger)

    def _found(self, chosen: Candidate, gain: float, before: Sample, after: Sample) -> Found:
        return Found(
            chosen=chosen,
            gain=gain,
            before=before,
            after=after,
            attempts=tuple(self._attempts),
            not_tried=tuple(self._not_tried),
            divergences=self._divergences,
        )

    def _last_figures(self) -> Sample | None:
        """Return the champion's figures in the last race; it is the base in all of them."""
        races = [attempt.race for attempt in self._attempts if attempt.race is not None]
        return races[-1].champion if races else None

    def _race(self, champion: RunnerT, challenger: RunnerT) -> RaceResult:
        until_s = min(self._deadline_s, self._lab.clock() + self._race_s)
        return self._lab.race(champion, challenger, until_s)

    def _score(self, runner: RunnerT, candidate: Candidate) -> Divergence:
        key = candidate.numbers_key
        if key not in self._divergences:
            self._divergences[key] = self._lab.measure_divergence(runner)
        return self._divergences[key]

    def _describe_excess(self, divergence: Divergence) -> str | None:
        if divergence.upper <= self._max_kl:
            return None
        return (
            f"KL to the reference is {divergence.mean:.4f} (with two standard errors "
            f"{divergence.upper:.4f}), the budget {self._max_kl:g}"
        )

    def _has_time(self) -> bool:
        # Once the champion has changed, a proof may be due at the end, which takes as long.
        needed_s = self._longest_trial_s * (2 if self._has_changed else 1)
        return self._lab.clock() + needed_s < self._deadline_s

    def _note(
        self,
        candidate: Candidate,
        verdict: Verdict,
        reason: str,
        divergence: Divergence | None = None,
        race: RaceResult | None = None,
    ) -> None:
        self._attempts.append(Attempt(candidate, verdict, reason, divergence, race))
        self._report(f"  {verdict}: {reason}")


def _describe_race(result: RaceResult) -> str:
    interval = result.interval
    return (
        f"{interval.gain:.3f} times as fast ({interval.low:.3f} to {interval.high:.3f}, "
        f"{result.num_rounds} rounds)"
    )
