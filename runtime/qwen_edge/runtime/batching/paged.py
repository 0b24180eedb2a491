"""Sequences whose caches are blocks of one memory, so that many of them share a step.

Each sequence has a table of blocks. Beginnings that several have are computed once and held by
all. A block is written to by one holder only and never again once it is full: an engine may keep
it quantised as a whole. Rows of one sequence do not depend on which others run along. There is no
padding to a common length: sequences of any lengths stand flat one behind the other.

It does no arithmetic (`paged_engine.py`) and decides nothing (`scheduler.py`); `block_pool.py`
counts the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from qwen_edge.errors import ResourceError
from qwen_edge.runtime.backends.backend import LogitsRows
from qwen_edge.runtime.backends.checks import check_token_ids
from qwen_edge.runtime.batching.batch_backend import Feed
from qwen_edge.runtime.batching.block_keys import BlockKey, KeyChain, name_blocks
from qwen_edge.runtime.batching.block_pool import BlockPool
from qwen_edge.runtime.batching.paged_engine import PagedCall, PagedEngine, int32

_PADDING_IDS = (0, 0)  # two tokens: see `_must_fill_up`
_FIRST_BLOCKS = 16


@dataclass
class _Sequence:
    """One sequence.

    Args:
        keys: Follows what is cached.
        named: Names of the whole blocks that are known so far, and whether a call ended there.
        max_reused: Most tokens to take from the cache.
        blocks: Its table; blocks beyond `num_tokens` are reserved.
        num_tokens: Tokens that are cached.
    """

    keys: KeyChain
    named: list[tuple[BlockKey, bool]]
    max_reused: int
    blocks: list[int] = field(default_factory=list)
    num_tokens: int = 0


class PagedBatchBackend:
    """Several sequences on a paged engine.

    Args:
        engine: Owned and closed here.
        max_context_tokens: Most tokens of one sequence.
        cache_bytes: Most memory for blocks. It is taken as it is needed.
        reuses_answers: Whether a prompt may go on from blocks of another request's answer.
            They were computed token by token, so the logits then differ from those of the
            prompt alone in their last bits. Without it, sharing never changes a bit.

    Raises:
        ResourceError: The memory does not hold the few blocks that anything needs.

    State:
        See `BatchBackend`. After a failure within the engine, `reset` before anything else.
    """

    max_sequences: int | None = None

    def __init__(
        self,
        engine: PagedEngine,
        *,
        max_context_tokens: int,
        cache_bytes: int,
        reuses_answers: bool = False,
    ) -> None:
        num_blocks = cache_bytes // engine.bytes_per_block
        if num_blocks < 2:
            raise ResourceError(
                f"A cache of {cache_bytes:,} bytes holds {num_blocks} blocks of "
                f"{engine.bytes_per_block:,} bytes; expected at least 2.",
                f"give at least {2 * engine.bytes_per_block:,} bytes.",
                cache_bytes=cache_bytes,
                bytes_per_block=engine.bytes_per_block,
            )
        self._engine = engine
        self._tells_calls = not reuses_answers
        self._max_context_tokens = max_context_tokens
        self._pool = BlockPool(num_blocks)
        self._padding_block = self._pool.take()
        self._num_provided = 0
        self._sequences: dict[int, _Sequence] = {}
        self._ids = count()

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._engine.vocab_size

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one sequence, when it is alone."""
        return min(self._max_context_tokens, self.num_blocks * self.block_tokens)

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""
        return self._engine.block_tokens

    @property
    def num_blocks(self) -> int:
        """All blocks that sequences may have; one more is kept for padding."""
        return self._pool.num_blocks - 1

    @property
    def num_blocks_available(self) -> int:
        """Blocks that `reserve` could take now."""
        return self._pool.num_available

    @property
    def num_blocks_cached(self) -> int:
        """Of the available ones, those that hold a beginning others may go on from."""
        return self._pool.num_cached

    @property
    def cache_bytes(self) -> int:
        """Memory that the blocks have now."""
        return self._num_provided * self._engine.bytes_per_block

    def begin(
        self,
        prompt_ids: Sequence[int],
        later_calls: Sequence[Sequence[int]] = (),
        *,
        max_reused: int,
    ) -> int:
        """Begin a sequence; see `BatchBackend`.

        Raises:
            ValueError: No ids, or ids outside the vocabulary. Nothing changed.
        """
        check_token_ids(prompt_ids, self.vocab_size)
        named = name_blocks(
            prompt_ids, later_calls, self.block_tokens, tells_calls=self._tells_calls
        )
        sequence = _Sequence(
            keys=KeyChain(self.block_tokens, tells_calls=self._tells_calls),
            named=named,
            max_reused=max_reused,
        )
        sequence_id = next(self._ids)
        self._sequences[sequence_id] = sequence
        self.reuse(sequence_id)
        return sequence_id

    def cached_tokens(self, sequence_id: int) -> int:
        """Return how many tokens of a sequence are in the cache."""
        return self._sequences[sequence_id].num_tokens

    def reuse(self, sequence_id: int) -> int:
        """Move a sequence on over whole blocks that are cached; return by how many tokens."""
        sequence = self._sequences[sequence_id]
        if not sequence.keys.is_at_block_end:
            return 0
        first = sequence.num_tokens // self.block_tokens
        found: list[int] = []
        num_usable = 0
        most = sequence.max_reused // self.block_tokens
        for key, is_call_end in sequence.named[first:most]:
            block = self._pool.find(key)
            if block is None:
                break
            found.append(block)
            if is_call_end:
                num_usable = len(found)
        for index, block in enumerate(found[:num_usable], start=first):
            self._pool.hold(block)
            if index < len(sequence.blocks):
                self._pool.release(sequence.blocks[index])
                sequence.blocks[index] = block
            else:
                sequence.blocks.append(block)
        sequence.num_tokens += num_usable * self.block_tokens
        if num_usable:
            sequence.keys.jump(sequence.named[first + num_usable - 1][0])
        return num_usable * self.block_tokens

    def reserve(self, sequence_id: int, num_tokens: int) -> bool:
        """Take the memory for so many more tokens; False, changing nothing, where it lacks."""
        sequence = self._sequences[sequence_id]
        wanted = -(-(sequence.num_tokens + num_tokens) // self.block_tokens)
        num_more = wanted - len(sequence.blocks)
        if num_more > self._pool.num_available:
            return False
        sequence.blocks.extend(self._pool.take() for _ in range(num_more))
        return True

    def fork(self, sequence_id: int) -> int:
        """Begin a sequence that holds what another one does.

        Whole blocks are shared; the one that is partly filled is copied.

        Raises:
            ResourceError: There is no block to copy into. Nothing changed.
        """
        parent = self._sequences[sequence_id]
        num_whole = parent.num_tokens // self.block_tokens
        blocks = parent.blocks[:num_whole]
        if not parent.keys.is_at_block_end:
            if not self._pool.num_available:
                raise ResourceError(
                    f"All {self.num_blocks:,} blocks of the cache are in use.",
                    "free a sequence first, or give the cache more memory.",
                    num_blocks=self.num_blocks,
                )
            copy = self._pool.take()
            self._provide()
            self._engine.copy_block(parent.blocks[num_whole], copy)
            blocks.append(copy)
        for block in blocks[:num_whole]:
            self._pool.hold(block)
        twin_id = next(self._ids)
        self._sequences[twin_id] = _Sequence(
            keys=parent.keys.copy(),
            named=parent.named,
            max_reused=parent.max_reused,
            blocks=blocks,
            num_tokens=parent.num_tokens,
        )
        return twin_id

    def free(self, sequence_id: int) -> None:
        """End a sequence; its named blocks stay as long as their memory is not needed."""
        # The end goes first: what others may share is the beginning.
        for block in reversed(self._sequences.pop(sequence_id).blocks):
            self._pool.release(block)

    def step(self, feeds: Sequence[Feed]) -> LogitsRows:
        """Append tokens to several sequences in one call of the engine; see `BatchBackend`.

        Raises:
            DeviceError: The engine refused.
            ResourceError: There is no memory for the blocks.
        """
        self._provide()
        rows = self._engine.run(self._make_call(feeds))
        for feed in feeds:
            self._take_note(self._sequences[feed.sequence_id], feed.token_ids)
        num_scored = sum(feed.is_scored for feed in feeds)
        scored: LogitsRows = rows[:num_scored]
        return scored

    def reset(self) -> None:
        """End all sequences and forget what may be reused."""
        for sequence_id in list(self._sequences):
            self.free(sequence_id)
        self._pool.forget_names()

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        self.reset()
        self._engine.close()

    def _provide(self) -> None:
        """Have memory for the blocks in use, twice as much each time it is not enough."""
        needed = self._pool.num_touched
        if needed > self._num_provided:
            wanted = max(needed, 2 * self._num_provided, _FIRST_BLOCKS)
            wanted = min(wanted, self._pool.num_blocks)
            self._engine.provide(wanted)
            self._num_provided = wanted

    def _take_note(self, sequence: _Sequence, token_ids: Sequence[int]) -> None:
        """Count fed tokens, and name the blocks they filled."""
        first = sequence.num_tokens // self.block_tokens
        for index, key in enumerate(sequence.keys.feed(token_ids), start=first):
            self._pool.name(sequence.blocks[index], key)
        sequence.num_tokens += len(token_ids)

    def _make_call(self, feeds: Sequence[Feed]) -> PagedCall:
        token_ids: list[int] = []
        positions: list[int] = []
        past_lens, begins = [], [0]
        blocks: list[int] = []
        block_begins, scored = [0], []
        longest = len(_PADDING_IDS)
        for feed in feeds:
            sequence = self._sequences[feed.sequence_id]
            start, end = sequence.num_tokens, sequence.num_tokens + len(feed.token_ids)
            # What is written to belongs to this sequence alone.
            assert not self._pool.is_shared(sequence.blocks[start // self.block_tokens])
            token_ids.extend(feed.token_ids)
            positions.extend(range(start, end))
            past_lens.append(start)
            begins.append(len(token_ids))
            blocks.extend(sequence.blocks[: -(-end // self.block_tokens)])
            block_begins.append(len(blocks))
            longest = max(longest, end)
            if feed.is_scored:
                scored.append(len(token_ids) - 1)
        if self._must_fill_up(feeds):
            token_ids.extend(_PADDING_IDS)
            positions.extend(range(len(_PADDING_IDS)))
            past_lens.append(0)
            begins.append(len(token_ids))
            blocks.append(self._padding_block)
            block_begins.append(len(blocks))
        return PagedCall(
            token_ids=np.array(token_ids, dtype=np.int64),
            position_ids=np.array(positions, dtype=np.int64),
            past_lens=int32(past_lens),
            subsequence_begins=int32(begins),
            block_indices=int32(blocks),
            block_indices_begins=int32(block_begins),
            # The head is never run on nothing; the surplus row is dropped.
            scored_rows=int32(scored or [0]),
            max_context_tokens=longest,
        )

    def _must_fill_up(self, feeds: Sequence[Feed]) -> bool:
        """Return whether a short sequence must run along for the others' bits to stay the same.

        Few sequences of one token each make the engine split them among its threads, which
        adds up in another order. A sequence of more tokens keeps it from that, and two tokens
        more cost next to nothing.
        """
        is_few = len(feeds) < self._engine.min_uniform_sequences
        return is_few and all(len(feed.token_ids) == 1 for feed in feeds)
