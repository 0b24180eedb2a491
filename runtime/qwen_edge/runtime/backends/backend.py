"""The seam between the token loop and an inference engine.

A backend owns one KV cache and turns token ids into next-token logits. It knows nothing
of text, chat templates or sampling. Read `fake.py` for the smallest one, `openvino.py` and
`onnx.py` for the real ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
"""Next-token logits of one sequence, float32 [vocab_size]."""


@dataclass(frozen=True, eq=False)
class CacheSnapshot:
    """A copy of one cache, to go on from later as if nothing had happened in between.

    Args:
        kind: The kind of backend that took it; no other takes it back.
        vocab_size: Of the model it belongs to.
        token_ids: The cached tokens, in order.
        arrays: What the engine held for them, read-only; none where it is computed again.
            Which is which is the backend's own business.
    """

    kind: str
    vocab_size: int
    token_ids: tuple[int, ...]
    arrays: tuple[npt.NDArray[Any], ...] = ()


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
