"""The seam between the batcher and what computes several sequences at once.

A sequence is begun with its prompt, fed in calls, and freed. What it may take from the cache of
earlier ones is the backend's business; what is fed when is the batcher's (`scheduler.py`). Read
`paged.py` for the one that gains by it and `sequential.py` for the one that does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qwen_edge.runtime.backends.backend import LogitsRows


@dataclass(frozen=True, slots=True)
class Feed:
    """One sequence's share of a step.

    Args:
        sequence_id: What `begin` returned.
        token_ids: What to append, at least one.
        is_scored: Whether the logits after the last of them are wanted.
    """

    sequence_id: int
    token_ids: Sequence[int]
    is_scored: bool


class BatchBackend(Protocol):
    """Several sequences over one model. Used by one thread at a time.

    State:
        A sequence holds `cached_tokens(id)` tokens and blocks of memory for more; blocks are
        taken by `reserve` and given back by `free`, which alone change how many there are.
    """

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one sequence, when it is alone."""
        ...

    @property
    def max_sequences(self) -> int | None:
        """Most sequences it pays to have at once; None where memory alone decides."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens per block, the unit of memory and of what sequences share."""
        ...

    @property
    def num_blocks(self) -> int:
        """All blocks there may ever be."""
        ...

    @property
    def num_blocks_available(self) -> int:
        """Blocks that `reserve` could take now."""
        ...

    @property
    def num_blocks_cached(self) -> int:
        """Of the available ones, those that still hold a beginning others may go on from."""
        ...

    def begin(
        self,
        prompt_ids: Sequence[int],
        later_calls: Sequence[Sequence[int]] = (),
        *,
        max_reused: int,
    ) -> int:
        """Begin a sequence on the longest beginning of it that is still cached.

        Args:
            prompt_ids: At least one id, each in [0, vocab_size).
            later_calls: What was fed after the prompt, call by call, where the sequence was
                freed in the middle and is computed again.
            max_reused: Most tokens to take from the cache.

        Returns:
            The sequence's id; `cached_tokens` says how much of it is there.
        """
        ...

    def cached_tokens(self, sequence_id: int) -> int:
        """Return how many tokens of a sequence are in the cache."""
        ...

    def reuse(self, sequence_id: int) -> int:
        """Move a sequence on over what others computed meanwhile; return by how many tokens."""
        ...

    def reserve(self, sequence_id: int, num_tokens: int) -> bool:
        """Take the memory for so many more tokens; False, changing nothing, where it lacks."""
        ...

    def fork(self, sequence_id: int) -> int:
        """Begin a sequence that holds what another one does; both go on on their own.

        Raises:
            ResourceError: There is no block to copy what cannot be shared.
        """
        ...

    def free(self, sequence_id: int) -> None:
        """End a sequence. What it computed may be reused as long as its memory is not needed."""
        ...

    def step(self, feeds: Sequence[Feed]) -> LogitsRows:
        """Append tokens to several sequences in one call of the engine.

        Args:
            feeds: At least one, each of another sequence, with memory reserved.

        Returns:
            float32 [scored feeds, vocab_size], in their order, owned by the caller.

        Raises:
            DeviceError: The engine refused. What the sequences hold is unknown: `reset`.
        """
        ...

    def reset(self) -> None:
        """End all sequences and forget what may be reused."""
        ...

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        ...
