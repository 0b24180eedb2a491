"""A backend without an engine: it says what it was told to say, and counts.

For tests, examples and for trying out samplers and sessions without a model. Read it beside
`backend.py`: it keeps every promise of the protocol in plain Python.
"""

from collections.abc import Callable, Sequence

import numpy as np

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends.backend import (
    MAX_SCORED_TOKENS,
    CacheSnapshot,
    Logits,
    LogitsRows,
)
from qwen_edge.runtime.backends.checks import (
    check_num_scored,
    check_room,
    check_snapshot,
    check_token_ids,
    check_trim,
    closed_error,
)

NextToken = Callable[[Sequence[int]], int]
"""Maps the ids in the cache, in order, to the id that should come next."""

_KIND = "fake"
_FAVOURED_LOGIT = 10.0  # the others are 0: at temperature 1 and 1,024 ids still 95.6 % likely


class FakeBackend:
    """One sequence whose continuation is scripted.

    Args:
        script: Ids to favour one after the other, one for each `forward` of this backend's
            life whatever it is fed, the last for ever; or a function of the cached ids, which
            then also makes the answer depend on what was trimmed.
        vocab_size: Length of the logits.
        max_context_tokens: Most tokens in the cache.
        fail_at_call: The `forward` of this number, counted from 1, raises `DeviceError`.

    Raises:
        ValueError: The script is empty or leaves the vocabulary.

    State:
        `cached_ids` are the ids in the cache; `num_forward_calls`, `num_forward_tokens` and
        `num_resets` count what was asked; `is_closed` is set by `close`.
    """

    def __init__(
        self,
        script: Sequence[int] | NextToken,
        *,
        vocab_size: int = 256,
        max_context_tokens: int = 4096,
        fail_at_call: int | None = None,
    ) -> None:
        if not callable(script):
            check_token_ids(script, vocab_size)
        self._script = script
        self._vocab_size = vocab_size
        self._max_context_tokens = max_context_tokens
        self._fail_at_call = fail_at_call
        self.cached_ids: list[int] = []
        self.num_forward_calls = 0
        self.num_forward_tokens = 0
        self.num_resets = 0
        self.is_closed = False

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache; none once it is closed."""
        return 0 if self.is_closed else len(self.cached_ids)

    @property
    def max_context_tokens(self) -> int:
        """Most tokens that the cache may hold."""
        return self._max_context_tokens

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._vocab_size

    @property
    def max_scored_tokens(self) -> int:
        """Most tokens after which one call gives logits."""
        return MAX_SCORED_TOKENS

    def forward(self, token_ids: Sequence[int]) -> Logits:
        """Append ids; return logits that favour the scripted one, float32 [vocab_size].

        Raises:
            ContextFullError: The cache would exceed its limit. Nothing changed.
            DeviceError: This is call `fail_at_call`; the cache is reset.
            UsageError: The backend is closed.
            ValueError: No ids, or ids outside the vocabulary. Nothing changed.
        """
        logits: Logits = self.forward_scored(token_ids, num_scored=1)[0]
        return logits

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        """Append ids; return logits after each of the last ones, float32 [num_scored, vocab_size].

        Raises:
            As `forward`; ValueError also where `num_scored` is out of range.
        """
        if self.is_closed:
            raise closed_error()
        check_token_ids(token_ids, self._vocab_size)
        check_num_scored(num_scored, len(token_ids), self.max_scored_tokens)
        check_room(self.cached_tokens, len(token_ids), self._max_context_tokens)
        self.num_forward_calls += 1
        self.num_forward_tokens += len(token_ids)
        if self.num_forward_calls == self._fail_at_call:
            self.cached_ids.clear()
            raise DeviceError("The fake device refused, as it was told to.", "ask again.")
        logits = np.zeros((num_scored, self._vocab_size), dtype=np.float32)
        for index, token_id in enumerate(token_ids, start=num_scored - len(token_ids)):
            self.cached_ids.append(token_id)
            if index >= 0:
                logits[index, self._next_id()] = _FAVOURED_LOGIT
        return logits

    def trim(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` ids.

        Raises:
            ValueError: `num_tokens` is negative or more than `cached_tokens`.
        """
        check_trim(num_tokens, self.cached_tokens)
        del self.cached_ids[len(self.cached_ids) - num_tokens :]

    def reset(self) -> None:
        """Forget all ids."""
        self.num_resets += 1
        self.cached_ids.clear()

    def snapshot(self) -> CacheSnapshot:
        """Return the cached ids.

        Raises:
            UsageError: The backend is closed.
        """
        if self.is_closed:
            raise closed_error()
        return CacheSnapshot(_KIND, self._vocab_size, tuple(self.cached_ids))

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Put the ids of a snapshot in the place of the cached ones.

        Raises:
            UsageError: Another kind of backend took it, or one of another vocabulary; or the
                backend is closed. Nothing changed.
            ContextFullError: It is longer than the cache may be. Nothing changed.
        """
        if self.is_closed:
            raise closed_error()
        limit = self._max_context_tokens
        check_snapshot(snapshot, _KIND, vocab_size=self._vocab_size, max_context_tokens=limit)
        self.cached_ids[:] = snapshot.token_ids

    def close(self) -> None:
        """Refuse further calls of `forward`; `cached_ids` stay, for tests to look at."""
        self.is_closed = True

    def _next_id(self) -> int:
        if callable(self._script):
            return self._script(self.cached_ids)
        return self._script[min(self.num_forward_calls, len(self._script)) - 1]
