"""What backends over an OpenVINO decoder on CPU and GPU have in common: tokens in, logits out.

Where keys and values are kept differs: `openvino.py` leaves them in the engine's state,
`openvino_own_cache.py` keeps them in memory of ours.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from qwen_edge.runtime.backends.backend import CacheSnapshot, Logits, LogitsRows
from qwen_edge.runtime.backends.checks import check_num_scored, check_room, check_token_ids
from qwen_edge.runtime.backends.chunks import cut_into_chunks
from qwen_edge.runtime.backends.decoder_request import DecoderRequest


class DecoderBackend(ABC):
    """One sequence on a compiled decoder.

    Args:
        request: Of the compiled model.
        max_context_tokens: Most tokens in the cache.
        prefill_chunk_tokens: Most tokens per call of the engine; bounds its working memory.
        keeps_alive: What the compiled model needs; held until the backend is closed.

    State:
        `ids` are the cached tokens. After any failure within the engine the cache is empty.
    """

    def __init__(
        self,
        request: DecoderRequest,
        *,
        max_context_tokens: int,
        prefill_chunk_tokens: int,
        keeps_alive: object = None,
    ) -> None:
        self._keeps_alive = keeps_alive
        self._request = request
        self._max_context_tokens = max_context_tokens
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._ids: list[int] = []

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache that are still part of the sequence."""
        return len(self._ids)

    @property
    def max_context_tokens(self) -> int:
        """Most tokens that `cached_tokens` may reach."""
        return self._max_context_tokens

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._request.vocab_size

    @property
    def max_scored_tokens(self) -> int:
        """Most tokens after which one call gives logits."""
        return min(self._request.max_scored_tokens, self._prefill_chunk_tokens)

    def forward(self, token_ids: Sequence[int]) -> Logits:
        """Append tokens; return the logits after the last, float32 [vocab_size], a copy.

        Raises:
            ContextFullError: The cache would exceed `max_context_tokens`. Nothing changed.
            DeviceError: The engine refused; the cache is empty now.
            ParityError: The logits are not finite; the cache is empty now.
            UsageError: The backend is closed.
            ValueError: No ids, or ids outside the vocabulary. Nothing changed.
        """
        logits: Logits = self._compute(token_ids, 1)[0]
        return logits

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        """Append tokens; return the logits after each of the last ones, a copy.

        Raises:
            ValueError: `num_scored` is out of range. Nothing changed.
            EdgeError: As `forward`.
        """
        check_num_scored(num_scored, len(token_ids), self.max_scored_tokens)
        return self._compute(token_ids, num_scored)

    @abstractmethod
    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens; see `Backend.trim`."""

    @abstractmethod
    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the cache; see `Backend.snapshot`."""

    @abstractmethod
    def restore(self, snapshot: CacheSnapshot) -> None:
        """Put a copy in the place of the cache; see `Backend.restore`."""

    def reset(self) -> None:
        """Forget everything."""
        self._forget()

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        self._forget()
        self._request.close()
        self._keeps_alive = None

    def _compute(self, token_ids: Sequence[int], num_scored: int) -> LogitsRows:
        """Append tokens; return the logits after each of the last ones."""
        check_token_ids(token_ids, self._request.vocab_size)
        check_room(len(self._ids), len(token_ids), self._max_context_tokens)
        try:
            self._make_room(len(token_ids))
            self._feed(token_ids, num_scored)
            return self._request.read_logits(num_scored)
        except BaseException:
            # Also for Ctrl-C: whether the engine appended before it is unknown.
            self._forget()
            raise

    def _feed(self, token_ids: Sequence[int], num_scored: int = 1) -> None:
        for chunk in cut_into_chunks(token_ids, self._prefill_chunk_tokens, num_scored):
            self._append(chunk)

    @abstractmethod
    def _append(self, token_ids: Sequence[int]) -> None:
        """Let the engine append tokens in one call."""

    @abstractmethod
    def _forget(self) -> None:
        """Count nothing as cached."""

    @abstractmethod
    def _make_room(self, num_new: int) -> None:
        """Prepare the cache for so many tokens more."""
