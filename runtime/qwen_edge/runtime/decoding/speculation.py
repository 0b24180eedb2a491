"""Speculation that pays or stops: which source may guess, how much, and whether at all.

Before each call it reckons, from what it has measured, how many tokens a draft of each length
would settle and what the call would cost, and takes the best. It keeps account of what drafts
gained and lost against single steps; where they lose more than a small share of the time they
are off until that share has become small again. `draft_estimates.py` has the measuring.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qwen_edge.errors import UsageError
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.decoding.draft_account import DraftAccount, SpeculationStats
from qwen_edge.runtime.decoding.draft_estimates import (
    CALL_SIZES,
    CallCosts,
    HitRates,
    RecentMedian,
)
from qwen_edge.runtime.decoding.draft_model import DraftModel
from qwen_edge.runtime.decoding.drafting import CallReport, DraftSource, describe_failure
from qwen_edge.runtime.decoding.prompt_lookup import PromptLookup

_LOGGER = logging.getLogger(__name__)
_MIN_GAIN = 1.05  # expected tokens per second over those of single steps
_LEAST_COST = 0.02  # of a single step, for each guess
_MIN_REACH = 0.03  # a guess that is looked at at all is reached with this probability
_CALLS_PER_PROBE = 64  # a source that costs time is tried again, and a single step is measured
# A single step, as long as few were measured, and where those may be why drafts seem to pay.
_CALLS_PER_SURE_PROBE, _SURE_GAIN, _CALLS_PER_UNSURE_PROBE = 24, 1.5, 2
_PROBE_TOKENS = 2

_Result = TypeVar("_Result")


class _Tried:
    """One source with what was learned about it.

    State:
        Learns; belongs to a model rather than to an answer.
    """

    def __init__(self, source: DraftSource) -> None:
        self.source = source
        self.rates = HitRates()
        self.guess_seconds = RecentMedian()
        self.num_calls_since = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one source could do in the next call."""

    tried: _Tried
    evidence: int
    num_tokens: int
    gain: float


class Speculation:
    """A drafter that asks others, only as much as it pays.

    Args:
        sources: The first of equally good ones is asked.

    State:
        Estimates and the account go on from answer to answer, counts begin anew with each.
        One answer at a time. A source that fails is left out until the next answer.
    """

    def __init__(self, sources: Sequence[DraftSource]) -> None:
        self._all = [_Tried(source) for source in sources]
        self._costs = CallCosts()
        self._account = DraftAccount(self._costs)
        self._active = list(self._all)
        self._plan: _Plan | None = None
        # Guesses that cost nothing and were not fed: what comes is compared with them.
        self._untried: list[tuple[_Tried, int, int]] = []
        self._num_pending, self._num_last_accepted = 1, 0
        self._calls_since_single = 0

    @property
    def stats(self) -> SpeculationStats:
        """What it did since `begin`."""
        return self._account.read(has_sources=bool(self._active))

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start on a new answer."""
        self._account.begin()
        self._active = list(self._all)
        self._plan, self._untried = None, []
        self._num_pending, self._num_last_accepted = 1, 0
        for tried in self._all:
            tried.rates.fade()
        self._ask_all(lambda source: source.begin(prompt_ids))

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take note of new tokens; they also say whether what was not tried was right."""
        if not token_ids:
            return
        for tried, evidence, token_id in self._untried:
            tried.rates.observe(evidence, is_right=token_id == token_ids[0])
        self._untried = []
        self._num_pending = len(token_ids) - self._num_last_accepted
        self._num_last_accepted = 0
        self._ask_all(lambda source: source.extend(token_ids))

    def propose(self, max_tokens: int) -> Sequence[int]:
        """Return the draft that pays best, none where single steps do."""
        self._plan, self._untried = None, []
        offers = [
            (tried, evidence)
            for tried in self._active
            if (evidence := self._ask(tried, lambda source: source.evidence()) or 0)
        ]
        if not offers:
            return []
        guesses: Sequence[int] = []
        if self._costs.is_ready:
            plans = [self._make_plan(tried, evidence, max_tokens) for tried, evidence in offers]
            wanted = [plan for plan in plans if plan.num_tokens]
            for plan in sorted(wanted, key=lambda plan: -plan.gain):
                if self._must_measure(plan.gain) or not self._account.may_spend(plan.gain):
                    break
                guesses = self._carry_out(plan)
                if self._plan is not None:
                    break
            if not wanted:
                self._account.count_unpaid()
        self._watch(offers)
        return guesses

    def report(self, call: CallReport) -> None:
        """Take note of how a call went."""
        plan, self._plan = self._plan, None
        self._num_last_accepted = call.num_accepted
        self._costs.observe(call.num_fed, call.seconds)
        self._account.count_call(call)
        self._calls_since_single = 0 if call.num_fed == 1 else self._calls_since_single + 1
        for tried in self._active:
            tried.num_calls_since += 1
        if plan is not None:
            self._learn(plan, call)

    def close(self) -> None:
        """End the answer; what was learned stays."""
        self._ask_all(lambda source: source.close())

    def _must_measure(self, gain: float) -> bool:
        """Return whether a single step was not measured for long, and the next one can be."""
        if self._costs.is_settled:
            period = _CALLS_PER_PROBE
        else:
            period = _CALLS_PER_SURE_PROBE if gain > _SURE_GAIN else _CALLS_PER_UNSURE_PROBE
        return self._num_pending == 1 and self._calls_since_single >= period

    def _learn(self, plan: _Plan, call: CallReport) -> None:
        """Take note of how a draft went."""
        tried = plan.tried
        tried.num_calls_since = 0
        for index in range(call.num_accepted):
            tried.rates.observe(plan.evidence + index, is_right=True)
        if call.num_accepted < call.num_drafted:
            tried.rates.observe(plan.evidence + call.num_accepted, is_right=False)
        draft_seconds = 0.0 if tried.source.is_free else call.draft_seconds
        if not tried.source.is_free:
            tried.guess_seconds.add(draft_seconds / max(call.num_drafted, 1))
        self._account.book(call, draft_seconds)

    def _make_plan(self, tried: _Tried, evidence: int, max_tokens: int) -> _Plan:
        """Return the best length for a source's draft; 0 where single steps are better."""
        costs, guess_s = self._costs, tried.guess_seconds.value
        pending_s, single_s = costs.seconds(self._num_pending), costs.seconds(1)
        return_s = 0.0 if self._calls_since_single else costs.return_seconds()
        best, best_gain = 0, _MIN_GAIN
        reach, settled, num_tokens = 1.0, 1.0, 0
        most = min(self._num_pending + max_tokens, costs.max_size)
        for size in CALL_SIZES:
            length = size - self._num_pending
            if size > most:
                break
            while num_tokens < length and reach > _MIN_REACH:
                reach *= tried.rates.chance(evidence + num_tokens)
                settled += reach
                num_tokens += 1
            if num_tokens < max(length, 1):
                continue
            # What is pending has to be fed anyway: only what comes on top counts.
            # That a longer call costs no more at all is for the account to find out.
            extra_s = max(costs.seconds(size) - pending_s, _LEAST_COST * length * single_s)
            gain = settled / (1.0 + (extra_s + return_s + guess_s * length) / single_s)
            if gain > best_gain:
                best, best_gain = length, gain
        is_due = not tried.source.is_free and tried.num_calls_since >= _CALLS_PER_PROBE
        if not best and is_due:
            best = min(_PROBE_TOKENS, max_tokens)
        return _Plan(tried, evidence, best, best_gain)

    def _carry_out(self, plan: _Plan) -> Sequence[int]:
        """Return a source's draft; none where it failed or has to prepare itself first."""
        if self._ask(plan.tried, lambda source: source.prepare()):
            return []
        if plan.tried not in self._active:
            return []
        guesses = self._ask(plan.tried, lambda source: source.propose(plan.num_tokens))
        if guesses is not None:
            self._plan = plan
        return guesses or []

    def _watch(self, offers: Sequence[tuple[_Tried, int]]) -> None:
        """Remember the first guesses of sources that were not asked, where these cost nothing."""
        for tried, evidence in offers:
            is_asked = self._plan is not None and self._plan.tried is tried
            if is_asked or not tried.source.is_free:
                continue
            guesses = self._ask(tried, lambda source: source.propose(1))
            if guesses:
                self._untried.append((tried, evidence, guesses[0]))

    def _ask(self, tried: _Tried, question: Callable[[DraftSource], _Result]) -> _Result | None:
        """Return a source's answer; None where it failed, and is left out from then on."""
        try:
            return question(tried.source)
        except Exception as error:
            problem = f"{tried.source.name} failed: {describe_failure(error)}"
            _LOGGER.warning("Speculation goes on without it: %s", problem)
            self._account.failures.append(problem)
            self._active = [other for other in self._active if other is not tried]
            return None

    def _ask_all(self, question: Callable[[DraftSource], None]) -> None:
        for tried in self._active:
            self._ask(tried, question)


def make_drafter(
    backend: Backend, *, lookup: bool = True, draft: DraftModel | None = None
) -> Speculation | None:
    """Return what guesses ahead for a model; one for all its answers, one after the other.

    Args:
        backend: The model's own.
        lookup: Whether to guess what the sequence said before.
        draft: A smaller model; `check_same_vocabulary` is the caller's to call.

    Returns:
        None where nothing is wanted, or where the device scores one token at a time and no
        draft model was asked for.

    Raises:
        UsageError: A draft model is of no use on this device.
    """
    if backend.max_scored_tokens < 2:
        if draft is None:
            return None
        raise UsageError(
            "A draft model saves nothing here: this device gives the scores of one token a call.",
            "leave the draft model out, or run with --device CPU or GPU.",
        )
    sources: list[DraftSource] = [PromptLookup()] if lookup else []
    if draft is not None:
        sources.append(draft)
    return Speculation(sources) if sources else None
