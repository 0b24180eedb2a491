"""The seam between the token loop and an inference engine.

A backend owns one KV cache and turns token ids into next-token logits. It knows nothing
of text, chat templates or sampling. Read `fake.py` for the smallest one and `openvino.py`
for the real one.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
"""Next-token logits of one sequence, float32 [vocab_size]."""


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

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        ...
