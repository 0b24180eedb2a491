"""Brings an answer to a whole end before its limit.

At each token near the limit a way to the end is known, and it is never longer than what is left.
While there is room, everything is allowed. With less, tokens that begin or end something are
allowed only if a way remains after them; text may go on. At last only the way itself is left,
and it is forced. Read `shortest.py` for how ways are found.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.decoding.constraint import Bitmask, unpack_mask
from qwen_edge.runtime.structured.matcher import Matcher
from qwen_edge.runtime.structured.shortest import ShortestWay, TextPlace, Vocabulary

LOOK_AHEAD_TOKENS = 1_024  # with more left than this nothing is looked at
SPARE_TOKENS = 16  # above what a choice can add by the estimate
_MAX_CHECKED = 64
_MAX_SEARCHES = 8
_OPEN_TEXT_TOKENS = 4_096  # more choices than this: free text
_MAX_PATIENCE = 128


class Landing:
    """Watches the limit of one answer.

    Args:
        ways: Finds ways in the answer's grammar.
        vocabulary: The model's.
        growth: Most tokens that one choice can add to the shortest way.
        scalar_growth: The same of choices within one text or number.

    State:
        Follows the answer: `note` is told every token. Remembers the last way.
    """

    def __init__(
        self, ways: ShortestWay, vocabulary: Vocabulary, *, growth: int, scalar_growth: int
    ) -> None:
        self._ways = ways
        self._vocabulary = vocabulary
        self._scalar_room = scalar_growth + SPARE_TOKENS
        self._room = max(growth + SPARE_TOKENS, self._scalar_room)
        self._place = TextPlace()
        self._way: list[int] | None = None
        self._is_current = False
        self._way_after: dict[int, list[int]] = {}  # of tokens that were checked
        self._num_waiting = 0
        self._patience = 8  # tokens to wait after no way was found, each time longer

    def copy(self) -> "Landing":
        """Return another one at the same place."""
        copied = Landing(self._ways, self._vocabulary, growth=0, scalar_growth=0)
        copied.__dict__.update(self.__dict__)
        copied._place = self._place.copy()
        return copied

    def note(self, token_id: int) -> None:
        """Take note of the answer's next token."""
        self._place.extend(self._vocabulary.bytes[token_id])
        self._num_waiting = max(self._num_waiting - 1, 0)
        if self._is_current and self._way and self._way[0] == token_id:
            self._way = self._way[1:]
        elif token_id in self._way_after:
            self._way, self._is_current = self._way_after[token_id], True
        else:
            self._is_current = False
        self._way_after = {}

    def way_if_due(self, matcher: Matcher, remaining_tokens: int) -> Sequence[int]:
        """Return the way to the end if it just fits what is left, else nothing."""
        way = self._find(matcher, remaining_tokens)
        return way if way is not None and len(way) == remaining_tokens else ()

    def narrow(self, matcher: Matcher, mask: Bitmask, remaining_tokens: int) -> Bitmask:
        """Return a mask without what would leave no way to the end in time.

        Args:
            matcher: Where the answer is; not moved.
            mask: What the grammar allows there; not changed.
            remaining_tokens: Tokens that may still come, the next one included.
        """
        way = self._find(matcher, remaining_tokens)
        if way is None or remaining_tokens - len(way) >= self._room:
            return mask
        allowed = unpack_mask(mask, len(self._vocabulary.bytes))
        token_ids = np.flatnonzero(allowed)
        structural = self._vocabulary.is_structural[token_ids]
        if self._place.is_quoted:  # brackets are text there, only what ends it is not
            structural = self._vocabulary.open_scores[1, token_ids] != 1
        is_open_text = token_ids.size > _OPEN_TEXT_TOKENS
        has_room = remaining_tokens - len(way) >= self._scalar_room
        narrowed = np.zeros_like(allowed)
        if has_room and np.count_nonzero(~structural) > _MAX_CHECKED:
            narrowed[token_ids[~structural]] = True
            token_ids = token_ids[structural]
        elif is_open_text:
            token_ids = token_ids[structural]
        self._way_after = self._find_safe(matcher, token_ids, way, remaining_tokens - 1)
        narrowed[list(self._way_after)] = True
        narrowed[way[0]] = True
        words = np.packbits(narrowed, bitorder="little")
        padded = np.zeros(mask.size * mask.itemsize, dtype=np.uint8)
        padded[: words.size] = words
        return padded.view(np.int32)

    def _find(self, matcher: Matcher, remaining_tokens: int) -> list[int] | None:
        """Return a way to the end that fits; None where there is none, or time enough."""
        if remaining_tokens > LOOK_AHEAD_TOKENS:
            return None
        if not self._is_current:
            self._way = self._search(matcher, remaining_tokens)
            self._is_current = True
        fits = self._way is not None and len(self._way) <= remaining_tokens
        return self._way if fits else None

    def _search(self, matcher: Matcher, remaining_tokens: int) -> list[int] | None:
        """Return the way of before if it still leads to the end, else a new one."""
        is_useful = self._way is not None and len(self._way) <= remaining_tokens
        if is_useful and self._place.is_quoted and self._ways.is_way(matcher, self._way or ()):
            return self._way
        if self._num_waiting:
            return None
        try:
            way = self._ways.find(matcher, self._place, remaining_tokens)
        except GrammarError:
            way = None  # the engine's limits; the answer itself may well go on
        if way is None:
            self._num_waiting = self._patience
            self._patience = min(2 * self._patience, _MAX_PATIENCE)
        return way

    def _find_safe(
        self,
        matcher: Matcher,
        token_ids: npt.NDArray[np.int64],
        way: list[int],
        max_tokens: int,
    ) -> dict[int, list[int]]:
        """Return those of some tokens after which a way to the end is known, with that way.

        Args:
            matcher: Where the answer is.
            token_ids: What is allowed there; only the first ones are looked at. The lower its
                id, the more common a token is.
            way: A way to the end from there.
            max_tokens: Longest way of use.
        """
        safe: dict[int, list[int]] = {}
        known = [way, way[1:]]
        num_searches = 0
        for token_id in map(int, token_ids[:_MAX_CHECKED]):
            ways = (w for w in known if 0 < len(w) <= max_tokens)
            served = next((w for w in ways if self._ways.is_way(matcher, [token_id, *w])), None)
            if served is not None:
                known.remove(served)  # what served last will serve again
                known.insert(0, served)
            elif num_searches < _MAX_SEARCHES:
                num_searches += 1
                served = self._find_after(matcher, token_id, max_tokens)
                known += [] if served is None else [served]
            if served is not None:
                safe[token_id] = served
        return safe

    def _find_after(self, matcher: Matcher, token_id: int, max_tokens: int) -> list[int] | None:
        """Return a way to the end after one more token; None where none fits."""
        after, place = matcher.copy(), self._place.copy()
        place.extend(self._vocabulary.bytes[token_id])
        try:
            after.consume([token_id])
            return self._ways.find(after, place, max_tokens)
        except GrammarError:
            return None
