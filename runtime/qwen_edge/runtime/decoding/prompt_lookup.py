"""Drafts from the sequence itself: where its end was said before, it may go on as it did then.

What answers copy from their prompt, as extraction, edits and code do, is guessed so without any
model. The index is that of Lempel-Ziv compressors: the last place of each pair of tokens, and
from each place the one before it with the same pair. `speculation.py` decides how much of a
guess is tried.

A single token says something too where it stood only once before, as the first word of a name, or
always went on alike, as the quote after a colon: an extraction of five long fields took 46 calls
instead of 59.
"""

from array import array
from collections.abc import Sequence

from qwen_edge.runtime.decoding.drafting import CallReport

MIN_MATCH_TOKENS = 2
"""Of a match that is searched for among all places. One token's are everywhere: of these the last
two are looked at."""

MAX_MATCH_TOKENS = 32
"""Longer ones are not told apart: as a match of 32 goes on, so does one of 300."""

_MAX_PLACES = 64  # looked at for one search, the most recent ones: a bound for its time
_NONE = -1


class PromptLookup:
    """Proposes what followed the last tokens where they stood before.

    The longest match counts, of equally long ones the most recent. Once found it is followed for
    as long as it holds, and only then is searched again.

    Source:
        The idea: github.com/apoorvumang/prompt-lookup-decoding.

    State:
        Follows the sequence. Memory is linear in it, 260 bytes a token; a new token costs a
        search of a bounded number of places at most.
    """

    name = "prompt lookup"
    is_free = True

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # pair of tokens -> index of the token after its last place
        self._last: dict[int, int] = {}
        # index of a token -> the same for the place before of the pair in front of it
        self._before = array("i")
        # The same for single tokens.
        self._last_single: dict[int, int] = {}
        self._before_single = array("i")
        self._source, self._length = _NONE, 0

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start on a new sequence. What it begins with in common with the last one is kept."""
        known = len(self._tokens)
        if known > len(prompt_ids) or self._tokens != list(prompt_ids[:known]):
            self._forget()
            known = 0
        self._append(prompt_ids[known:])
        self._search()

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take note of new tokens of the sequence."""
        for token_id in token_ids:
            if self._source != _NONE and self._tokens[self._source] == token_id:
                self._source += 1
                self._length = min(self._length + 1, MAX_MATCH_TOKENS)
                self._append((token_id,))
            else:
                self._append((token_id,))
                self._source, self._length = _NONE, 0
        if self._length < MIN_MATCH_TOKENS and token_ids:
            self._search()

    def evidence(self) -> int:
        """Return how many tokens before here agree with those before the guess; 0 for no guess."""
        return self._length if self._source != _NONE else 0

    def prepare(self) -> bool:
        """Return False: there is nothing to prepare."""
        return False

    def propose(self, max_tokens: int) -> Sequence[int]:
        """Return what followed then. A match that reaches up to here is taken as a repetition."""
        if self._source == _NONE:
            return []
        guesses = self._tokens[self._source : self._source + max_tokens]
        period = len(self._tokens) - self._source
        while len(guesses) < max_tokens:
            guesses.append(guesses[-period])
        return guesses

    def report(self, call: CallReport) -> None:
        """Do nothing: what was right is in the sequence."""

    def close(self) -> None:
        """Do nothing: the next answer most often continues the sequence."""

    def _forget(self) -> None:
        self._tokens.clear()
        self._last.clear()
        self._last_single.clear()
        del self._before[:], self._before_single[:]
        self._source, self._length = _NONE, 0

    def _append(self, token_ids: Sequence[int]) -> None:
        """Add tokens; each becomes the continuation of the pair in front of it."""
        tokens, last, before = self._tokens, self._last, self._before
        last_single, before_single = self._last_single, self._before_single
        for token_id in token_ids:
            index = len(tokens)
            if index:
                before_single.append(last_single.get(tokens[-1], _NONE))
                last_single[tokens[-1]] = index
            else:
                before_single.append(_NONE)
            if index < MIN_MATCH_TOKENS:
                before.append(_NONE)
            else:
                pair = tokens[-2] << 32 | tokens[-1]
                before.append(last.get(pair, _NONE))
                last[pair] = index
            tokens.append(token_id)

    def _search(self) -> None:
        """Find the longest match of the sequence's end, the most recent of equal ones."""
        self._source, self._length = _NONE, 0
        tokens = self._tokens
        end = len(tokens)
        if end <= MIN_MATCH_TOKENS:
            return
        place = self._last.get(tokens[-2] << 32 | tokens[-1], _NONE)
        for _ in range(_MAX_PLACES):
            if place == _NONE:
                break
            # A match of k tokens begins k before the place; one that is no longer is not wanted.
            most = min(place, MAX_MATCH_TOKENS)
            if self._length < most and (
                self._length < MIN_MATCH_TOKENS
                or tokens[place - 1 - self._length] == tokens[end - 1 - self._length]
            ):
                length = MIN_MATCH_TOKENS
                while length < most and tokens[place - 1 - length] == tokens[end - 1 - length]:
                    length += 1
                if length > self._length:
                    self._source, self._length = place, length
                    if length == MAX_MATCH_TOKENS:
                        return
            place = self._before[place]
        if self._source == _NONE:
            self._search_single()

    def _search_single(self) -> None:
        """Find the last place of the last token, unless it went on otherwise the time before."""
        tokens = self._tokens
        place = self._last_single.get(tokens[-1], _NONE)
        if place == _NONE:
            return
        before = self._before_single[place]
        if before == _NONE or tokens[before] == tokens[place]:
            self._source, self._length = place, 1
