"""What may come next: the seam between choosing a token and everything that limits the choice.

A grammar, a tool call's schema and a limit on reasoning all are constraints. They follow the
answer token by token and say which tokens are allowed, and which ones must come. Read
`picker.py` for who asks them.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bitmask = npt.NDArray[np.int32]
"""Allowed tokens, int32 [ceil(vocab_size / 32)]: bit `i % 32` of word `i // 32` is token i."""


class Constraint(Protocol):
    """A limit on one answer.

    State:
        Follows the answer: every token of it is given to `advance` once, in order, whether it
        was chosen or forced.
    """

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        """Return which tokens may come next, or None where all may.

        Args:
            remaining_tokens: How many tokens the answer may still have, this one included;
                what must come to an end in time can steer to it.
        """
        ...

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        """Return tokens that have to come next, none where there is a choice. Changes nothing.

        Args:
            remaining_tokens: As for `mask`; more tokens than that are cut off by the caller.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Take note of the answer's next token.

        Raises:
            EdgeError: It is not allowed, or the constraint cannot go on.
        """
        ...

    def count_valid(self, token_ids: Sequence[int]) -> int:
        """Return how many of these could follow, from the first on. Changes nothing."""
        ...


def is_allowed(mask: Bitmask, token_id: int) -> bool:
    """Return whether a mask allows a token."""
    return bool(int(mask[token_id // 32]) >> (token_id % 32) & 1)


def unpack_mask(mask: Bitmask, vocab_size: int) -> npt.NDArray[np.bool_]:
    """Return a mask as bool [vocab_size]; tokens beyond its end are not allowed.

    Args:
        mask: int32 [at least ceil(n / 32)], little-endian words.
        vocab_size: Length of the logits, which may be longer than the tokenizer's vocabulary.
    """
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")
    allowed = np.zeros(vocab_size, dtype=np.bool_)
    num_known = min(vocab_size, bits.size)
    allowed[:num_known] = bits[:num_known]
    return allowed
