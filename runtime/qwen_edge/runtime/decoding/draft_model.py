"""Drafts from a smaller model with the same vocabulary.

It reads the same sequence into a cache of its own and says what it would answer. Always its
likeliest token: what counts is that the large model chooses the same, and measured on made-up
distributions (temperature 0.6 to 0.7, a model as far off as smaller ones are) neither a draw of
its own, 0.02 to 0.05 less often right, nor the same draw as the large model's, 0.02 less to 0.05
more, is worth its time. `speculation.py` decides when it is asked.
"""

from collections.abc import Sequence

import numpy as np

from qwen_edge.errors import UsageError
from qwen_edge.runtime.backends.backend import Backend, Logits
from qwen_edge.runtime.decoding.drafting import CallReport
from qwen_edge.runtime.text_tokenizer import TextTokenizer

MIN_PROBABILITY = 0.4
"""Below this by its own account a guess is not worth a step. Source: the default of Transformers'
`assistant_confidence_threshold`, 5.5.4."""

_CHUNK_TOKENS = 512  # read between two steps of the large model, so that these go on
_MAX_BEHIND_TOKENS = 32  # what is read together with the first guess
_EVIDENCE = 6  # until measured it counts as a repetition of so many tokens does


class DraftModel:
    """Proposes what a smaller model would answer.

    Args:
        backend: Of the smaller model. Used by nobody else; closed by whoever opened it.
        name: For messages.
        min_probability: In [0, 1]; the first guess below it ends a draft.

    State:
        The cache follows the sequence when a draft is wanted, from answer to answer: what both
        have in common is not read again. Where its context ends, there are no more drafts.
    """

    is_free = False

    def __init__(
        self,
        backend: Backend,
        *,
        name: str = "the draft model",
        min_probability: float = MIN_PROBABILITY,
    ) -> None:
        self.name = name
        self._backend = backend
        self._min_probability = min_probability
        self._sequence: list[int] = []
        self._fed: list[int] = []
        self._num_common = 0

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start on a new answer; nothing is read yet."""
        self._sequence = list(prompt_ids)
        self._num_common = 0

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take note of new tokens of the sequence; nothing is read yet."""
        self._sequence.extend(token_ids)

    def evidence(self) -> int:
        """Return the same each time; 0 where the sequence has outgrown the context."""
        has_room = 0 < len(self._sequence) <= self._backend.max_context_tokens
        return _EVIDENCE if has_room else 0

    def prepare(self) -> bool:
        """Read a part of the sequence, if much of it was not read; return whether it was.

        Raises:
            EdgeError: As the backend.
        """
        self._drop_what_differs()
        num_behind = len(self._sequence) - len(self._fed)
        if num_behind <= _MAX_BEHIND_TOKENS:
            return False
        start = len(self._fed)
        self._feed(self._sequence[start : start + min(_CHUNK_TOKENS, num_behind - 1)])
        return True

    def propose(self, max_tokens: int) -> Sequence[int]:
        """Return the tokens it would answer, up to the first that it is not sure of.

        Raises:
            EdgeError: As the backend.
        """
        room = self._backend.max_context_tokens - len(self._sequence)
        most = min(max_tokens, room + 1)  # the last guess is not fed
        if most < 1 or not self._sequence:
            return []
        self._drop_what_differs()
        guesses: list[int] = []
        logits = self._feed(self._sequence[len(self._fed) :])
        while True:
            token_id = int(np.argmax(logits))
            if _probability(logits, token_id) < self._min_probability:
                return guesses
            guesses.append(token_id)
            if len(guesses) == most:
                return guesses
            logits = self._feed([token_id])

    def report(self, call: CallReport) -> None:
        """Do nothing: what was right is in the sequence."""

    def close(self) -> None:
        """Keep the cache for the next answer."""

    def _drop_what_differs(self) -> None:
        """Trim the cache to what it has in common with the sequence but for the last token."""
        fed, sequence = self._fed, self._sequence
        del fed[self._backend.cached_tokens :]  # a failure empties it
        most = min(len(fed), len(sequence) - 1)
        num_common = min(self._num_common, most)
        while num_common < most and fed[num_common] == sequence[num_common]:
            num_common += 1
        self._num_common = num_common
        self._backend.trim(len(fed) - num_common)
        del fed[num_common:]

    def _feed(self, token_ids: Sequence[int]) -> Logits:
        logits = self._backend.forward(token_ids)
        self._fed.extend(token_ids)
        return logits


def _probability(logits: Logits, token_id: int) -> float:
    """Return how likely a token is by logits, float32 [vocab_size]."""
    return 1.0 / float(np.exp(logits - logits[token_id]).sum())


def check_same_vocabulary(
    tokenizer: TextTokenizer, draft_tokenizer: TextTokenizer, draft_name: str
) -> None:
    """Refuse a draft model whose ids mean other tokens than the large model's.

    Every id of either is looked up in both, control tokens too. What turns text into ids may
    differ: drafts are ids. Logits may be longer than the vocabulary in one and not in the other.

    Args:
        tokenizer: The large model's.
        draft_tokenizer: The draft model's.
        draft_name: For the message.

    Raises:
        UsageError: Naming the first id that differs and both its tokens.
    """
    own, other = tokenizer.vocabulary(), draft_tokenizer.vocabulary()
    if own == other:
        return
    own_by_id = {token_id: token for token, token_id in own.items()}
    other_by_id = {token_id: token for token, token_id in other.items()}
    ids = own_by_id.keys() | other_by_id.keys()
    differing = [
        token_id for token_id in ids if own_by_id.get(token_id) != other_by_id.get(token_id)
    ]
    first = min(differing)
    raise UsageError(
        f"{draft_name!r} cannot draft for this model: their vocabularies differ in "
        f"{len(differing):,} of {len(ids):,} ids. Id {first:,} is "
        f"{other_by_id.get(first)!r} there and {own_by_id.get(first)!r} here.",
        "use a smaller model of the same family, such as Qwen3-0.6B for Qwen3-4B.",
        num_differing=len(differing),
        first_id=first,
    )
