"""Many sequences on a backend that has one: they take turns, and each finds its cache again.

Correct and without gain: for engines that have no paging, and for tests. A change of turns copies
a cache out and another one in, or computes it again where the engine keeps it to itself. So it
asks for one sequence at a time, unless told that answers should flow side by side. What the last
sequence left in the cache serves the next one, as far as both begin alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile

import numpy as np

from qwen_edge.errors import ParityError, ResourceError
from qwen_edge.runtime.backends.backend import Backend, CacheSnapshot, Logits, LogitsRows
from qwen_edge.runtime.backends.checks import check_token_ids
from qwen_edge.runtime.batching.batch_backend import Feed


@dataclass
class _Sequence:
    """One sequence: what is cached, the blocks counted for it, and its cache while away.

    `is_lost` is set when the model gave no numbers for it, after which it has no cache.
    """

    token_ids: list[int] = field(default_factory=list)
    num_blocks: int = 0
    snapshot: CacheSnapshot | None = None
    is_lost: bool = False


class SequentialBatchBackend:
    """Several sequences that take turns on one backend.

    Args:
        backend: Empty; owned and closed here.
        max_sequences: Most at once. With 1 nothing is ever copied.
        max_cached_tokens: Most tokens of all sequences together, which bounds the memory of
            the copies; None for as many as their contexts hold.
        block_tokens: The unit in which these are counted, and prompts cut.

    State:
        `_current` is the sequence whose cache the backend holds now; the others have copies.
        Without one, the backend holds `_left_ids`, of a sequence that was freed.
    """

    num_blocks_cached = 0

    def __init__(
        self,
        backend: Backend,
        *,
        max_sequences: int = 1,
        max_cached_tokens: int | None = None,
        block_tokens: int = 32,
    ) -> None:
        self._backend = backend
        self.max_sequences: int | None = max_sequences
        self.block_tokens = block_tokens
        limit = max_cached_tokens or max_sequences * backend.max_context_tokens
        self.num_blocks = math.ceil(limit / block_tokens)
        self._sequences: dict[int, _Sequence] = {}
        self._current: int | None = None
        self._left_ids: list[int] = []
        self._ids = count()

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._backend.vocab_size

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one sequence, when it is alone."""
        return min(self._backend.max_context_tokens, self.num_blocks * self.block_tokens)

    @property
    def num_blocks_available(self) -> int:
        """Blocks that `reserve` could take now."""
        return self.num_blocks - sum(item.num_blocks for item in self._sequences.values())

    def begin(
        self,
        prompt_ids: Sequence[int],
        later_calls: Sequence[Sequence[int]] = (),
        *,
        max_reused: int,
    ) -> int:
        """Begin a sequence, on what the last one left where nobody has the backend.

        Raises:
            ValueError: No ids, or ids outside the vocabulary. Nothing changed.
        """
        del later_calls  # blocks of answers are not kept apart
        check_token_ids(prompt_ids, self.vocab_size)
        sequence = _Sequence()
        sequence_id = self._add(sequence)
        pairs = zip(self._left_ids, prompt_ids[:max_reused], strict=False)
        num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        num_blocks = min(num_common // self.block_tokens, self.num_blocks_available)
        if self._current is None and num_blocks:
            num_kept = num_blocks * self.block_tokens
            self._backend.trim(len(self._left_ids) - num_kept)
            sequence.token_ids = self._left_ids[:num_kept]
            sequence.num_blocks = num_blocks
            self._left_ids = []
            self._current = sequence_id
        return sequence_id

    def cached_tokens(self, sequence_id: int) -> int:
        """Return how many tokens of a sequence are in the cache."""
        return len(self._sequences[sequence_id].token_ids)

    def reuse(self, sequence_id: int) -> int:
        """Return 0: nothing is shared."""
        del sequence_id
        return 0

    def reserve(self, sequence_id: int, num_tokens: int) -> bool:
        """Count the blocks of so many more tokens; False where there are not so many."""
        sequence = self._sequences[sequence_id]
        wanted = math.ceil((len(sequence.token_ids) + num_tokens) / self.block_tokens)
        if wanted - sequence.num_blocks > self.num_blocks_available:
            return False
        sequence.num_blocks = max(wanted, sequence.num_blocks)
        return True

    def fork(self, sequence_id: int) -> int:
        """Begin a sequence that holds what another one does, as a copy.

        Raises:
            ResourceError: There are no blocks for the copy. Nothing changed.
        """
        parent = self._sequences[sequence_id]
        num_blocks = math.ceil(len(parent.token_ids) / self.block_tokens)
        if num_blocks > self.num_blocks_available:
            raise ResourceError(
                f"A copy of the sequence needs {num_blocks:,} blocks of the cache, but "
                f"{self.num_blocks_available:,} of {self.num_blocks:,} are free.",
                "free a sequence first.",
                num_blocks=num_blocks,
            )
        if sequence_id == self._current:
            parent.snapshot = self._backend.snapshot()
        return self._add(_Sequence(list(parent.token_ids), num_blocks, parent.snapshot))

    def free(self, sequence_id: int) -> None:
        """End a sequence."""
        sequence = self._sequences.pop(sequence_id)
        if sequence_id == self._current:
            self._current = None
            self._left_ids = sequence.token_ids

    def step(self, feeds: Sequence[Feed]) -> LogitsRows:
        """Append tokens to one sequence after the other; see `BatchBackend`.

        Raises:
            EdgeError: The backend refused.
        """
        rows = []
        for feed in feeds:
            logits = self._feed(feed)
            self._sequences[feed.sequence_id].token_ids += feed.token_ids
            if feed.is_scored:
                rows.append(logits)
        if not rows:
            return np.zeros((0, self.vocab_size), dtype=np.float32)
        return np.stack(rows)

    def reset(self) -> None:
        """End all sequences."""
        self._sequences.clear()
        self._current = None
        self._left_ids = []
        self._backend.reset()

    def close(self) -> None:
        """Release the backend. Calling it twice is harmless."""
        self._sequences.clear()
        self._backend.close()

    def _feed(self, feed: Feed) -> Logits:
        """Append tokens to one sequence; where the model gives no numbers, neither does this."""
        sequence = self._sequences[feed.sequence_id]
        if not sequence.is_lost:
            self._turn_to(feed.sequence_id)
            try:
                return self._backend.forward(feed.token_ids)
            except ParityError:
                # It is this sequence's fault alone: the others go on.
                sequence.is_lost = True
                self._current = None
        return np.full(self.vocab_size, np.nan, dtype=np.float32)

    def _add(self, sequence: _Sequence) -> int:
        sequence_id = next(self._ids)
        self._sequences[sequence_id] = sequence
        return sequence_id

    def _turn_to(self, sequence_id: int) -> None:
        """Let the backend hold this sequence's cache."""
        if sequence_id == self._current:
            return
        if self._current is not None:
            self._sequences[self._current].snapshot = self._backend.snapshot()
        self._current = None
        self._left_ids = []
        sequence = self._sequences[sequence_id]
        if sequence.snapshot is None:
            self._backend.reset()
        else:
            self._backend.restore(sequence.snapshot)
            sequence.snapshot = None
        self._current = sequence_id
