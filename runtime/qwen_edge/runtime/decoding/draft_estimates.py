"""What speculation learns as it goes: what a forward call costs, how often guesses are right.

Both begin with a prior and forget slowly, since contexts grow and texts change. A measured call
may be off by a third on a busy machine, and by much more now and then, so no single one may
decide. `speculation.py` reckons with what is learned here.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS

CALL_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Tokens per call that are worth telling apart. Engines prepare kernels for each size they meet,
so few sizes are better than all."""

# Seconds of a call of each of these sizes, of one token's: see MAX_SCORED_TOKENS.
_PRIOR_COSTS = (1.0, 0.95, 0.95, 1.1, 1.25, 1.55, 2.2, 2.9)
# Measured calls of one token, and of each longer size, whose median counts. Many, since all is
# compared with the former; few, since the latter must notice when longer calls become slow.
_NUM_SINGLES, _NUM_LONGER = 21, 9
_NUM_FIRST_CALLS = 3  # of one token, before anything is compared with them
_NUM_SETTLED_CALLS = 9  # of one token, before they need not be measured often any more
_LEAST_COST = 0.9  # of a single call: no longer one costs less, unless the single one is wrong
_MAX_AGE_CALLS = 256  # a measured longer call is forgotten after so many calls of any size
_CALLS_PER_TABLE = 8
_MOST_OFF = 2.0  # a call is counted as at most so many times what was expected

# Between these numbers of agreeing tokens guesses are right equally often.
_EVIDENCE_BOUNDS = (2, 3, 4, 5, 6, 8, 11, 16, 24, 32)
_HIT_MEMORY = 0.97
_PRIOR_WEIGHT = 3.0
_FADED_WEIGHT = 3.0  # guesses that an earlier answer counts for


class RecentMedian:
    """The median of the last few numbers.

    Args:
        max_count: How many.

    State:
        Grows with `add`; then each takes the place of the oldest.
    """

    def __init__(self, max_count: int = _NUM_LONGER) -> None:
        self._max_count = max_count
        self._in_order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def value(self) -> float:
        """The median, the upper one of two; 0 where there is none."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else 0.0

    def add(self, number: float) -> None:
        """Take one more."""
        self._in_order.append(number)
        insort(self._sorted, number)
        if len(self._sorted) > self._max_count:
            del self._sorted[bisect_left(self._sorted, self._in_order.popleft())]

    def clear(self) -> None:
        """Forget all."""
        self._in_order.clear()
        self._sorted.clear()


class CallCosts:
    """Seconds of a forward call, by the number of tokens in it.

    State:
        Learns with `observe`. Belongs to a model rather than to an answer. The very first call
        does not count: engines prepare themselves in it.
    """

    def __init__(self) -> None:
        self._num_calls = self._num_measured = 0
        self._last_size = 0
        self._singles = RecentMedian(_NUM_SINGLES)
        self._singles_after_longer = RecentMedian()
        # Of each size: measured seconds over the prior, and the number of the last such call.
        self._factors = tuple(RecentMedian() for _ in CALL_SIZES)
        self._last_calls = [0] * len(CALL_SIZES)
        self._table: list[float] = []
        self._max_size = 0

    @property
    def is_ready(self) -> bool:
        """Whether enough calls were measured to compare others with."""
        return self._num_measured >= _NUM_FIRST_CALLS

    @property
    def max_size(self) -> int:
        """Most tokens of a call of which the cost is not a mere guess: twice what was measured."""
        if not self._table:
            self._make_table()
        return self._max_size

    @property
    def is_settled(self) -> bool:
        """Whether enough single calls were measured that one now and then will do."""
        return len(self._singles) >= _NUM_SETTLED_CALLS

    def seconds(self, num_tokens: int) -> float:
        """Return what a call costs; sizes that were not met are taken after smaller ones.

        Args:
            num_tokens: At least 1.
        """
        if not self._table:
            self._make_table()
        if num_tokens <= MAX_SCORED_TOKENS:
            return self._table[num_tokens]
        last, before = self._table[-1], self._table[CALL_SIZES[-2]]
        slope = (last - before) / (CALL_SIZES[-1] - CALL_SIZES[-2])
        return last + slope * (num_tokens - MAX_SCORED_TOKENS)

    def return_seconds(self) -> float:
        """Return how much longer a single call takes right after a longer one.

        Engines prepare themselves anew when the size changes; that is the longer call's cost.
        """
        if len(self._singles_after_longer) < _NUM_FIRST_CALLS:
            return 0.0
        return max(self._singles_after_longer.value - self.seconds(1), 0.0)

    def charge(self, num_tokens: int, seconds: float) -> float:
        """Return a measured time without what says more of the machine than of the call."""
        expected = self.seconds(num_tokens)
        return min(max(seconds, expected / _MOST_OFF), expected * _MOST_OFF)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Take note of a call."""
        self._num_calls += 1
        last_size, self._last_size = self._last_size, num_tokens
        if not last_size or num_tokens > MAX_SCORED_TOKENS:
            return
        self._num_measured += 1
        if num_tokens == 1:
            singles = self._singles if last_size == 1 else self._singles_after_longer
            singles.add(seconds)
            if self.is_settled and self._num_calls % _CALLS_PER_TABLE:
                return  # a median moves little
        else:
            index = _nearest_size(num_tokens)
            seconds = self.charge(num_tokens, seconds) if self.is_ready else seconds
            factor = seconds / _PRIOR_TABLE[num_tokens]
            if self._num_calls - self._last_calls[index] > _MAX_AGE_CALLS:
                self._factors[index].clear()
            self._factors[index].add(factor)
            self._last_calls[index] = self._num_calls
        self._table = []

    def _make_table(self) -> None:
        """Reckon the seconds of calls of 0 to 16 tokens, and up to which size they are known."""
        oldest = max(self._num_calls - _MAX_AGE_CALLS, 1)
        measured = [
            (size, prior, factors.value, len(factors))
            for size, prior, factors, last in zip(
                CALL_SIZES, _PRIOR_COSTS, self._factors, self._last_calls, strict=True
            )
            if last >= oldest
        ]
        self._max_size = 2 * max((size for size, *_ in measured), default=2)
        bounds = [
            value * prior / _LEAST_COST
            for _, prior, value, count in measured
            if count >= _NUM_FIRST_CALLS or not len(self._singles)
        ]
        bounds += [
            singles.value for singles in (self._singles, self._singles_after_longer) if singles
        ]
        factor = min(bounds, default=0.0)
        of_size = {size: (value, count) for size, _, value, count in measured}
        knots = []
        for size, prior in zip(CALL_SIZES, _PRIOR_COSTS, strict=True):
            # What was not measured often is near what the next smaller size came to.
            value, count = of_size.get(size, (0.0, 0))
            factor = (factor + count * value) / (1 + count)
            knots.append(factor * prior)
        self._table = _interpolate(knots)


class HitRates:
    """How often a guess is right, by the evidence for it.

    State:
        Learns with `observe`; `fade` gives the prior more weight again.
    """

    def __init__(self) -> None:
        num_classes = len(_EVIDENCE_BOUNDS) + 1
        self._hits = [0.0] * num_classes
        self._weights = [0.0] * num_classes

    def chance(self, evidence: int) -> float:
        """Return the probability that a guess is right.

        Args:
            evidence: At least 1; for a repetition the tokens that agree before it.
        """
        index = bisect_right(_EVIDENCE_BOUNDS, evidence)
        strength = max(evidence, 2)  # a single token counts where it is as telling as two
        prior = (strength - 1) / (strength + 1)  # 2: 0.33, 4: 0.6, 16: 0.88
        return (self._hits[index] + _PRIOR_WEIGHT * prior) / (self._weights[index] + _PRIOR_WEIGHT)

    def observe(self, evidence: int, *, is_right: bool) -> None:
        """Take note of a guess that was settled."""
        index = bisect_right(_EVIDENCE_BOUNDS, evidence)
        self._hits[index] = self._hits[index] * _HIT_MEMORY + is_right
        self._weights[index] = self._weights[index] * _HIT_MEMORY + 1.0

    def fade(self) -> None:
        """Let what was learned count as little as a few guesses: the next text may be another."""
        for index, weight in enumerate(self._weights):
            if weight > _FADED_WEIGHT:
                self._hits[index] *= _FADED_WEIGHT / weight
                self._weights[index] = _FADED_WEIGHT


def _nearest_size(num_tokens: int) -> int:
    """Return the index of the size above one that is nearest."""
    index = bisect_left(CALL_SIZES, num_tokens, lo=1, hi=len(CALL_SIZES) - 1)
    is_nearer = 2 * num_tokens > CALL_SIZES[index] + CALL_SIZES[index - 1]
    return index if is_nearer or index == 1 else index - 1


def _interpolate(knots: Sequence[float]) -> list[float]:
    """Return what belongs to 0 to 16 tokens, from what belongs to `CALL_SIZES`."""
    table = [0.0, knots[0]]
    for (low, high), (first, last) in zip(pairwise(CALL_SIZES), pairwise(knots), strict=True):
        step = (last - first) / (high - low)
        table.extend(first + step * (size - low) for size in range(low + 1, high + 1))
    return table


_PRIOR_TABLE = _interpolate(_PRIOR_COSTS)
