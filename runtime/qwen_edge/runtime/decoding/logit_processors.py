"""Changes the scores of single tokens: bias, penalties on repetition, bans, what a grammar forbids.

Penalties look back at the prompt and the answer, so this is where the tokens of an answer are
remembered. They touch the scores of tokens seen, not the whole vocabulary. `sampling.py` calls
this and states the order.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import UsageError
from qwen_edge.runtime.decoding.constraint import Bitmask, unpack_mask

if TYPE_CHECKING:
    from qwen_edge.runtime.decoding.sampling import SamplingParams

Scores = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

MAX_REPETITION = 50  # as in text-generation-webui's DRY: the penalty grows as a power of this
_MAX_DRY_PENALTY = 1e30  # finite in float32, and beyond all logits
_POSITIVE_INFINITY = 0x7F800000  # bits of float32


class LogitChanges:
    """What the settings change about the scores of single tokens.

    Args:
        params: Checked settings.
        prompt_ids: What the answer follows.

    Raises:
        UsageError: DRY is on and its sequence breakers are still texts.

    State:
        Remembers the tokens of the answer, as far as a setting needs them.
    """

    def __init__(self, params: "SamplingParams", prompt_ids: Sequence[int]) -> None:
        bias = dict(params.logit_bias)
        self._params = params
        self._bias_ids = np.array(list(bias), np.int64)
        self._bias = np.array(list(bias.values()), np.float32)
        self._banned_ids = np.array(list(params.banned_token_ids), np.int64)
        looks_at_answer = bool(params.presence_penalty or params.frequency_penalty)
        self._seen = TokenCounts(prompt_ids) if params.repetition_penalty != 1.0 else None
        self._answered = TokenCounts(()) if looks_at_answer else None
        self._repeats: RepeatFinder | None = None
        if params.dry_multiplier > 0.0:
            breakers = _check_resolved(params.dry_sequence_breakers)
            self._repeats = RepeatFinder(prompt_ids, breakers, params.dry_range)

    def apply(self, logits: Scores, mask: Bitmask | None) -> Scores:
        """Return the scores to choose by.

        Args:
            logits: float32 [vocab_size]. Not changed.
            mask: The allowed tokens; None allows all.

        Returns:
            float32 [vocab_size]: `logits` itself where nothing changes, else a new array.
        """
        scores = logits if mask is None else _mask_scores(logits, mask)
        if not self._changes_scores:
            return scores
        if scores is logits:
            scores = logits.copy()
        # What is excluded already is -Inf and stays so, whatever is added.
        scores[self._bias_ids] += self._bias
        with np.errstate(over="ignore"):  # no model's logits are that large; Inf is refused later
            self._apply_penalties(scores)
        scores[self._banned_ids] = -np.inf
        return scores

    def record(self, token_id: int) -> None:
        """Take note of a token of the answer."""
        if self._seen is not None:
            self._seen.add(token_id)
        if self._answered is not None:
            self._answered.add(token_id)
        if self._repeats is not None:
            self._repeats.add(token_id)

    def copy(self) -> "LogitChanges":
        """Return one that has seen the same tokens, on its own from now on."""
        twin = LogitChanges(self._params, ())
        twin._seen = None if self._seen is None else self._seen.copy()
        twin._answered = None if self._answered is None else self._answered.copy()
        twin._repeats = None if self._repeats is None else self._repeats.copy()
        return twin

    @property
    def _changes_scores(self) -> bool:
        """Whether anything but a mask changes the scores."""
        histories = (self._seen, self._answered, self._repeats)
        looks_back = any(history is not None for history in histories)
        return looks_back or self._bias_ids.size > 0 or self._banned_ids.size > 0

    def _apply_penalties(self, scores: Scores) -> None:
        """Change the scores of tokens that came before."""
        params = self._params
        if self._seen is not None:
            seen = self._seen.ids
            before = scores[seen]
            penalty = np.float32(params.repetition_penalty)
            scores[seen] = np.where(before < 0, before * penalty, before / penalty)
        if self._answered is not None:
            counts = self._answered.counts
            taken = params.frequency_penalty * counts + params.presence_penalty
            scores[self._answered.ids] -= taken.astype(np.float32)
        if self._repeats is not None:
            for token_id, length in self._repeats.find(params.dry_allowed_length).items():
                power = params.dry_base ** (length - params.dry_allowed_length)
                scores[token_id] -= np.float32(min(params.dry_multiplier * power, _MAX_DRY_PENALTY))


class TokenCounts:
    """How often each token came.

    Args:
        token_ids: Tokens to begin with.

    State:
        Grows by one token at a time; adding one takes constant time.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        ids, counts = np.unique(np.asarray(token_ids, np.int64), return_counts=True)
        self._ids: Counts = ids
        self._counts: Counts = counts.astype(np.int64)
        self._num_ids = ids.shape[0]
        self._place_of: dict[int, int] = {
            token_id: place for place, token_id in enumerate(ids.tolist())
        }

    @property
    def ids(self) -> Counts:
        """The tokens, each once, int64 [n]; a view."""
        return self._ids[: self._num_ids]

    @property
    def counts(self) -> Counts:
        """How often each of `ids` came, int64 [n]; a view."""
        return self._counts[: self._num_ids]

    def add(self, token_id: int) -> None:
        """Count one more token."""
        place = self._place_of.setdefault(token_id, self._num_ids)
        if place == self._num_ids:
            self._ids = _with_room(self._ids, place)
            self._counts = _with_room(self._counts, place)
            self._ids[place] = token_id
            self._counts[place] = 0
            self._num_ids += 1
        self._counts[place] += 1

    def copy(self) -> "TokenCounts":
        """Return counts that start from these."""
        twin = TokenCounts(())
        twin._ids, twin._counts = self._ids.copy(), self._counts.copy()
        twin._num_ids, twin._place_of = self._num_ids, self._place_of.copy()
        return twin


class RepeatFinder:
    """Finds tokens that would make a repetition longer: the search behind the DRY penalty.

    Args:
        prompt_ids: Tokens to begin with.
        breakers: Tokens that no repetition reaches across.
        max_tokens: How many of the last tokens are searched; 0 for all.

    State:
        For each place of the sequence, how many tokens up to there equal the sequence's end.
        Adding a token and a search take time in proportion to the length of the sequence,
        whatever it holds: 50 microseconds for both at 32,000 tokens.

    Source:
        p-e-w, oobabooga/text-generation-webui#5677 and its successors.
    """

    def __init__(self, prompt_ids: Sequence[int], breakers: Iterable[int], max_tokens: int) -> None:
        self._breakers = frozenset(breakers)
        self._max_tokens = max_tokens
        self._ids: Counts = np.array(prompt_ids, np.int64)
        self._matched: Counts = np.zeros(self._ids.shape[0], np.int64)
        # Longer repetitions count as this long, so what came earlier need not be compared.
        self._num_ids = max(0, self._ids.shape[0] - MAX_REPETITION)
        for token_id in self._ids[self._num_ids :].tolist():
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Take note of the sequence's next token."""
        end = self._num_ids
        self._ids = _with_room(self._ids, end)
        self._matched = _with_room(self._matched, end)
        matched = self._matched
        if token_id in self._breakers:
            matched[: end + 1] = 0
        elif end:
            is_same = self._ids[:end] == token_id
            matched[1:end] = np.where(is_same[1:], matched[: end - 1] + 1, 0)
            matched[0] = is_same[0]
        self._ids[end] = token_id
        self._num_ids = end + 1

    def find(self, least_tokens: int) -> dict[int, int]:
        """Return the tokens that would continue a repetition, with its length so far.

        Args:
            least_tokens: Shorter repetitions are left out.

        Returns:
            Token id → length of the longest repetition it would continue, at most 50.
        """
        end = self._num_ids
        start = max(0, end - self._max_tokens) if self._max_tokens else 0
        places = np.flatnonzero(self._matched[start : max(end - 1, start)] >= least_tokens)
        # Only what lies within the range counts.
        lengths = np.minimum(self._matched[start + places], places + 1)
        lengths = np.minimum(lengths, MAX_REPETITION)
        order = np.argsort(lengths, kind="stable")
        next_ids = self._ids[start + places[order] + 1].tolist()
        longest = dict(zip(next_ids, lengths[order].tolist(), strict=True))  # the last one stays
        return {
            token_id: length
            for token_id, length in longest.items()
            if length >= least_tokens and token_id not in self._breakers
        }

    def copy(self) -> "RepeatFinder":
        """Return a finder that starts from this sequence."""
        twin = RepeatFinder((), self._breakers, self._max_tokens)
        twin._ids, twin._matched = self._ids.copy(), self._matched.copy()
        twin._num_ids = self._num_ids
        return twin


def _mask_scores(logits: Scores, mask: Bitmask) -> Scores:
    """Return a copy of the logits, float32 [vocab_size], with -Inf where a mask forbids."""
    # The smaller of a score and ±Inf: as fast for any mask, where a choice by condition takes
    # six times as long for some.
    forbids = ~unpack_mask(mask, logits.shape[0])
    ceiling = forbids.astype(np.uint32)
    ceiling <<= 31  # the sign
    ceiling |= np.uint32(_POSITIVE_INFINITY)
    return np.minimum(logits, ceiling.view(np.float32))


def _with_room(values: Counts, place: int) -> Counts:
    """Return an array that has this place: the same one, or a copy of at least twice its size."""
    if place < values.shape[0]:
        return values
    larger = np.zeros(max(64, 2 * place), np.int64)
    larger[: values.shape[0]] = values
    return larger


def _check_resolved(breakers: Iterable[int | str]) -> list[int]:
    """Return sequence breakers that are all token ids."""
    texts = [item for item in breakers if isinstance(item, str)]
    if texts:
        raise UsageError(
            f"dry_sequence_breakers holds the text {texts[0]!r}; here it must be token ids.",
            "call fit_to_model() of qwen_edge.runtime.decoding.fitting first",
            field="dry_sequence_breakers",
        )
    return [item for item in breakers if isinstance(item, int)]
