"""What speculation gained and lost against single steps, and the counts of an answer.

What single steps would have taken is an estimate, so in doubt the account decides for them.
`speculation.py` keeps it.
"""

from dataclasses import dataclass

from qwen_edge.runtime.decoding.draft_estimates import CallCosts
from qwen_edge.runtime.decoding.drafting import CallReport

# What drafts may lose of all time there is, and so many single steps beside that: more of them
# where much is expected.
_LOSS_SHARE = 0.01
_LOSS_STEPS, _SURE_LOSS_STEPS, _SURE_GAIN = 1.0, 2.5, 1.5
_DOUBT_SHARE = 0.04  # single steps may be so much faster than they were measured
_CREDIT_STEPS = 2.0  # gains of before that losses may use up
_MIN_UNPAID = 16  # calls with a guess that was not tried, before it is said that none pays


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """What speculation did in one answer.

    Args:
        num_calls: Forward calls after the prompt's.
        num_draft_calls: How many of them had a draft.
        num_proposed: Guesses that were fed.
        num_accepted: How many of them were right.
        saved_s: Estimated seconds that single steps would have taken more; negative for less.
        is_off: Whether it was off for most of the answer.
        off_reason: Why it was, or one of its sources; None where all are on.
    """

    num_calls: int = 0
    num_draft_calls: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    saved_s: float = 0.0
    is_off: bool = False
    off_reason: str | None = None


class DraftAccount:
    """The account of a model, and the counts of one answer.

    Args:
        costs: What calls cost; learned elsewhere.

    State:
        The balance goes on from answer to answer, since many short ones may lose as much as one
        long one; `begin` sets the counts to zero. `failures` are the sources that are left out.
    """

    def __init__(self, costs: CallCosts) -> None:
        self._costs = costs
        self._balance_s = 0.0
        self.begin()

    def begin(self) -> None:
        """Start on a new answer."""
        self._num_calls = self._num_draft_calls = 0
        self._num_proposed = self._num_accepted = 0
        self._num_held_back = self._num_unpaid = 0
        self._saved_s = 0.0
        self._is_after_draft = False
        self.failures: list[str] = []

    def may_spend(self, gain: float) -> bool:
        """Return whether a draft may be tried, or too much was lost before.

        Args:
            gain: Tokens per second that are expected with it, over those of single steps.
        """
        steps = _SURE_LOSS_STEPS if gain >= _SURE_GAIN else _LOSS_STEPS
        is_allowed = self._balance_s >= -steps * self._costs.seconds(1)
        self._num_held_back += not is_allowed
        return is_allowed

    def count_unpaid(self) -> None:
        """Take note that there was a guess that was not expected to pay."""
        self._num_unpaid += 1

    def count_call(self, call: CallReport) -> None:
        """Take note of a call, with a draft or without."""
        self._num_calls += 1
        self._add(_LOSS_SHARE * call.seconds)
        if call.num_fed == 1 and self._is_after_draft:
            return_s = self._costs.return_seconds()
            self._saved_s -= return_s
            self._add(-return_s)
        self._is_after_draft = call.num_drafted > 0

    def book(self, call: CallReport, draft_seconds: float) -> None:
        """Take note of what a draft brought, and of what it cost to make."""
        costs = self._costs
        self._num_draft_calls += call.num_drafted > 0
        self._num_proposed += call.num_drafted
        self._num_accepted += call.num_accepted
        num_pending = call.num_fed - call.num_drafted
        plain_s = costs.seconds(num_pending) + call.num_accepted * costs.seconds(1)
        saved_s = plain_s - costs.charge(call.num_fed, call.seconds) - draft_seconds
        self._saved_s += saved_s
        self._add(saved_s - _DOUBT_SHARE * plain_s)

    def read(self, *, has_sources: bool) -> SpeculationStats:
        """Return the counts, and whether speculation is off.

        Args:
            has_sources: Whether any source is left.
        """
        is_off, reason = not has_sources, "; ".join(self.failures) or None
        if has_sources and self._num_held_back + self._num_unpaid >= max(
            _MIN_UNPAID, self._num_draft_calls + 1
        ):
            is_off = True
            if self._num_held_back > self._num_unpaid:
                reason = (
                    f"drafts cost more time than they saved: {self._num_accepted:,} of "
                    f"{self._num_proposed:,} guesses were right"
                )
            else:
                reason = "longer calls cost more here than the guesses would have saved"
        return SpeculationStats(
            num_calls=self._num_calls,
            num_draft_calls=self._num_draft_calls,
            num_proposed=self._num_proposed,
            num_accepted=self._num_accepted,
            saved_s=self._saved_s,
            is_off=is_off,
            off_reason=reason,
        )

    def _add(self, seconds: float) -> None:
        limit_s = _CREDIT_STEPS * self._costs.seconds(1) if self._costs.is_ready else 0.0
        self._balance_s = min(self._balance_s + seconds, limit_s)
