"""Finds a short way from any place in a grammar to a whole answer.

It walks ahead on a copy: forced tokens are taken, else brackets and quotes are closed, else
the least is begun, else the longest token is taken that is allowed. Where it walks in a circle
it tries something else each time and cuts the circle out at the end. The way that it finds is
one that the engine has accepted; that none is shorter is likely, not certain. Read `landing.py`
for what the ways are for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime.decoding.constraint import unpack_mask
from qwen_edge.runtime.structured.matcher import Matcher

MAX_WAY_TOKENS = 2_048
_MAX_CHOICES = 512  # each takes 0.4 ms
# Where the same is allowed again and again: the longest token twice, one from anywhere in the
# vocabulary, one that leads on; then the next ones of each.
_TURN = 4
_STRIDE = 7_919  # a prime, so that the ones from anywhere differ
_MAX_CUTS = 6
_QUOTE, _BACKSLASH = 0x22, 0x5C
_OPENING, _CLOSING, _COMMA = b"[{(", b"]})", 0x2C
_UNFINISHED = b"-+.eE"  # after these a number needs another digit
# How much of an answer a token leaves open: brackets and quotes count fully. A comma alone is
# better than another digit, but after a value in the same token it is too early to know.
_COMMA_SCORE, _EARLY_COMMA_SCORE, _UNFINISHED_SCORE = -0.1, 0.3, 0.3
_CLOSES = -0.7
# Where a text has to go on: what most often leads on in addresses, dates and names comes first.
_LEADING = b"@.-:/_,;=+TZ 0123456789aAeEzZbcdfghijklmnopqrstuvwxyBCDFGHIJKLMNOPQRSUVWXY"


class Vocabulary:
    """What the tokens of a model say about structure.

    Args:
        token_bytes: Bytes of every id, empty for control tokens and ids without a token.

    State:
        Changes nothing after it was made; may be shared. `open_scores` are float32 [2, vocab]:
        what each token leaves open where it begins outside and inside quotes.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self.bytes = token_bytes
        self.lengths = np.array([len(token) for token in token_bytes], dtype=np.int16)
        structural = [not set(token).isdisjoint(b'"{}[]():,\\') for token in token_bytes]
        self.is_structural = np.array(structural, dtype=np.bool_)
        self.open_scores = np.tile(np.array([[0], [1]], np.float32), (1, len(token_bytes)))
        for token_id in np.flatnonzero(self.is_structural).tolist():
            for is_quoted in (False, True):
                score = _open_score(token_bytes[token_id], is_quoted=is_quoted)
                self.open_scores[int(is_quoted), token_id] = score
        id_of = {token: i for i, token in reversed(list(enumerate(token_bytes))) if token}
        for byte in _UNFINISHED:
            self.open_scores[0, id_of.get(bytes([byte]), [])] = _UNFINISHED_SCORE
        others = bytes(byte for byte in range(256) if byte not in _LEADING)
        leading = [bytes([byte]) for byte in _LEADING + others]
        self.leading = np.array([id_of[byte] for byte in leading if byte in id_of], np.int64)


class TextPlace:
    """Whether the end of a JSON text is inside quotes.

    State:
        Follows the text, token by token.
    """

    def __init__(self, *, is_quoted: bool = False, is_escaped: bool = False) -> None:
        self.is_quoted = is_quoted
        self._is_escaped = is_escaped

    def copy(self) -> "TextPlace":
        """Return another one at the same place."""
        return TextPlace(is_quoted=self.is_quoted, is_escaped=self._is_escaped)

    def extend(self, token: bytes) -> None:
        """Go on by the bytes of a token."""
        for byte in token:
            if self._is_escaped:
                self._is_escaped = False
            elif byte == _BACKSLASH and self.is_quoted:
                self._is_escaped = True
            elif byte == _QUOTE:
                self.is_quoted = not self.is_quoted


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known of one grammar: pieces of answers, as token ids.

    Args:
        names: Of required properties, each as it stands before its value.
        quoted_names: The same without the quotes that they begin with.
        endings: Of texts, up to the quote that ends them, or up to the end of the answer.
    """

    names: Sequence[Sequence[int]] = ()
    quoted_names: Sequence[Sequence[int]] = ()
    endings: Sequence[Sequence[int]] = ()


class ShortestWay:
    """Finds short ways to the end in one grammar.

    Args:
        vocabulary: The model's.
        eos_token_id: The last token of every way.
        hints: Tried before anything is tried at random.

    State:
        Remembers nothing of the answers it was asked about; may be shared.
    """

    def __init__(self, vocabulary: Vocabulary, eos_token_id: int, hints: Hints) -> None:
        self._vocabulary = vocabulary
        self._eos_token_id = eos_token_id
        self._hints = hints

    def find(self, start: Matcher, place: TextPlace, max_tokens: int) -> list[int] | None:
        """Return tokens that make the answer whole, its end included; None where none was found.

        Args:
            start: Where to begin; not moved.
            place: The same place in the text; not moved.
            max_tokens: Longest way that is of use.

        Raises:
            GrammarError: The engine gave up on the way.
        """
        walk = _Walk(start.copy(), place.copy(), self._vocabulary)
        # How far it walks does not depend on the limit: in circles it goes further than what is
        # left of the walk without them.
        while len(walk.token_ids) <= MAX_WAY_TOKENS and walk.num_choices < _MAX_CHOICES:
            if walk.matcher.is_accepting:
                way = self._cut_circles(start, walk)
                return [*way, self._eos_token_id] if len(way) < max_tokens else None
            walk.take(walk.matcher.forced() or self._choose(walk))
        return None

    def is_way(self, start: Matcher, way: Sequence[int]) -> bool:
        """Return whether tokens, of which the last is the end, make the answer whole."""
        if len(way) == 1:
            return start.is_accepting
        return start.count_valid(way) == len(way)

    def _choose(self, walk: "_Walk") -> Sequence[int]:
        """Return the tokens to take where there is a choice."""
        words = self._vocabulary
        allowed, num_visits = walk.look()
        is_quoted = walk.place.is_quoted
        token_ids = np.flatnonzero(allowed)
        scores = words.open_scores[int(is_quoted), token_ids]
        least = float(scores.min())  # below 1 in a text: it can be closed
        if not is_quoted and least < _CLOSES:
            return [int(token_ids[int(scores.argmin())])]
        names = self._hints.quoted_names if is_quoted else self._hints.names
        hint = _first_valid(walk.matcher, names, allowed, num_visits)
        if not hint and (least >= 1 or not is_quoted):
            hint = _first_valid(walk.matcher, self._hints.endings, allowed, 0)
        if hint:
            return hint[:-1] if hint[-1] == self._eos_token_id else hint
        # The same again and again leads nowhere, so now and then something else is taken.
        turn, step = divmod(num_visits, _TURN)
        leading = words.leading[allowed[words.leading]]
        if step == _TURN - 1 and leading.size:
            return [int(leading[turn % leading.size])]
        if least < 1 or not is_quoted:
            order = np.argsort(scores, kind="stable")
            return [int(token_ids[order[0 if is_quoted else turn % token_ids.size]])]
        if step == _TURN - 2:
            return [int(token_ids[_STRIDE * (turn + 1) % token_ids.size])]
        return [int(token_ids[int(words.lengths[token_ids].argmax())])]

    def _cut_circles(self, start: Matcher, walk: "_Walk") -> list[int]:
        """Return the walk without what led back to a place like an earlier one."""
        way, marks = walk.token_ids, walk.marks
        for _ in range(_MAX_CUTS):
            last = {mark: index for index, (mark, _) in enumerate(marks)}
            for index, (mark, begin) in enumerate(marks):
                end = marks[last[mark]][1]
                shorter = way[:begin] + way[end:]
                if end > begin and self.is_way(start, [*shorter, self._eos_token_id]):
                    rest = [(m, position - (end - begin)) for m, position in marks[last[mark] :]]
                    way, marks = shorter, marks[:index] + rest
                    break
            else:
                break
        return way


class _Walk:
    """One walk ahead.

    State:
        `token_ids` were taken; `marks` are the places where there was a choice, as
        `(what was allowed, tokens before it)`.
    """

    def __init__(self, matcher: Matcher, place: TextPlace, vocabulary: Vocabulary) -> None:
        self.matcher = matcher
        self.place = place
        self.token_ids: list[int] = []
        self.marks: list[tuple[bytes, int]] = []
        self._vocabulary = vocabulary
        self._mask = matcher.new_mask()
        self._num_visits: Counter[bytes] = Counter()

    @property
    def num_choices(self) -> int:
        """How often there was a choice."""
        return len(self.marks)

    def look(self) -> tuple[npt.NDArray[np.bool_], int]:
        """Return what is allowed, bool [vocab_size], and how often exactly that was allowed."""
        self.matcher.fill_mask(self._mask)
        mark = self._mask.tobytes()
        num_visits = self._num_visits[mark]
        self._num_visits[mark] += 1
        self.marks.append((mark, len(self.token_ids)))
        return unpack_mask(self._mask, len(self._vocabulary.bytes)), num_visits

    def take(self, token_ids: Sequence[int]) -> None:
        """Go on by tokens."""
        self.matcher.consume(token_ids)
        self.token_ids.extend(token_ids)
        for token_id in token_ids:
            self.place.extend(self._vocabulary.bytes[token_id])


def _first_valid(
    matcher: Matcher, hints: Sequence[Sequence[int]], allowed: npt.NDArray[np.bool_], begin: int
) -> Sequence[int]:
    """Return the first of some hints that could follow, from number `begin` on, or nothing."""
    for index in range(len(hints)):
        hint = hints[(index + begin) % len(hints)]
        if allowed[hint[0]] and matcher.count_valid(hint) == len(hint):
            return hint
    return ()


def _open_score(token: bytes, *, is_quoted: bool) -> float:
    """Return how much of an answer a token leaves open."""
    place = TextPlace(is_quoted=is_quoted)
    score = 0.0
    for index, byte in enumerate(token):
        if not place.is_quoted:
            score += (byte in _OPENING) - (byte in _CLOSING)
            if byte == _COMMA:
                is_first = not token[:index].strip()
                score += _COMMA_SCORE if is_first and not is_quoted else _EARLY_COMMA_SCORE
        place.extend(token[index : index + 1])
    return score + place.is_quoted
