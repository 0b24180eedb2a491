"""The seam between the token loop and an inference engine.

A backend owns one KV cache and turns token ids into next-token logits. It knows nothing
of text, chat templates or sampling. Read `fake.py` for the smallest one, `openvino.py` and
`onnx.py` for the real ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
"""Next-token logits of one sequence, float32 [vocab_size]."""

LogitsRows = npt.NDArray[np.float32]
"""Next-token logits after several tokens in a row, float32 [tokens, vocab_size]."""

MAX_SCORED_TOKENS = 16
"""Positions for which models are made to compute logits at the end of a call.

A call that settles several tokens must have logits after each. Measured, Qwen3-4B int4 on two
cores: a call of 2, 3, 4, 6, 8 and 16 tokens costs 0.95, 0.95, 1.1, 1.25, 1.55 and 2.9 of a call
of one, so each token from the ninth on costs 0.17, and long guesses are seldom right to the end.
A prompt is hardly slower: the output head does 16 of its 512 positions instead of one.
"""


@dataclass(frozen=True, eq=False)
class CacheSnapshot:
    """A copy of one cache, to go on from later as if nothing had happened in between.

    Args:
        kind: The kind of backend that took it; no other takes it back.
        vocab_size: Of the model it belongs to.
        token_ids: The cached tokens, in order.
        arrays: What the engine held for them, read-only; none where it is computed again.
            Which is which is the backend's own business.
        settings: What the numbers in the arrays depend on besides the model, as the engine
            resolved it; restored only where it is the same.
    """

    kind: str
    vocab_size: int
    token_ids: tuple[int, ...]
    arrays: tuple[npt.NDArray[Any], ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """One sequence, one KV cache.

    State:
        `cached_tokens` counts the tokens a following `forward` attends to. It grows by
        `len(token_ids)` with every `forward`, shrinks with `trim`, and is 0 after `reset`.
    """

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache that are still part of the sequence."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """Most tokens that `cached_tokens` may reach."""
        ...

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        ...

    @property
    def max_scored_tokens(self) -> int:
        """Most tokens after which one call gives logits; 1 where only the last one's are made."""
        ...

    def forward(self, token_ids: Sequence[int]) -> Logits:
        """Append tokens to the cache and return the logits after the last one.

        Args:
            token_ids: At least one id, each in [0, vocab_size).

        Returns:
            float32 [vocab_size], owned by the caller.

        Raises:
            ContextFullError: The cache would exceed `max_context_tokens`. Nothing changed.
            DeviceError: The engine refused; the cache is reset.
        """
        ...

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        """Append tokens to the cache and return the logits after each of the last ones.

        Args:
            token_ids: At least `num_scored` ids.
            num_scored: From 1 to `max_scored_tokens`.

        Returns:
            float32 [num_scored, vocab_size], owned by the caller. The last row is what
            `forward` returns.

        Raises:
            ValueError: `num_scored` is out of range. Nothing changed.
            EdgeError: As `forward`.
        """
        ...

    def trim(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens, exactly as if they had never been fed.

        Raises:
            ValueError: `num_tokens` is negative or more than `cached_tokens`.
        """
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the cache; the cache stays as it is.

        Raises:
            DeviceError: The engine did not give its cache out.
            UsageError: The backend is closed.
        """
        ...

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Put a copy of the cache in the place of what is there.

        Logits are then bit for bit those that would have followed the snapshot; where the
        snapshot has no arrays, they are those of the same tokens computed anew.

        Args:
            snapshot: Taken of the same model by a backend of the same kind.

        Raises:
            UsageError: It was taken by another kind of backend, or of another model; or the
                backend is closed. Nothing changed.
            ContextFullError: It is longer than `max_context_tokens`. Nothing changed.
            DeviceError: The engine refused; the cache is reset.
        """
        ...

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        ...
