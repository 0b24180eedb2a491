"""Conversations put aside in memory, to be gone on with when their session asks again.

Sessions take turns on one cache. What one of them throws away can be copied first, packed as the
engine keeps it, and put back in a twentieth of the time it takes to compute. This module keeps the
copies within a budget, and one besides that is never dropped: a package's warm prompt. It touches
no backend; `prefix_cache.py` decides when.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.kernels.kv_cache import BLOCK_TOKENS

_LOGGER = logging.getLogger(__name__)
_BLOCK_AXES = 3  # heads, blocks, bytes
PARKING_BUDGET_BYTES = 512 << 20
"""Memory for conversations put aside: 6,800 tokens of Qwen3-4B with a cache of 8 bits."""


@dataclass(frozen=True, eq=False)
class Parked:
    """One conversation put aside.

    Args:
        token_ids: Its tokens.
        num_bytes: What it takes of the budget.
        read: Returns the copy; may read a file and raise what that raises.
    """

    token_ids: tuple[int, ...]
    num_bytes: int
    read: Callable[[], CacheSnapshot]


class Parking:
    """Copies of caches, the one used longest ago dropped first.

    Args:
        budget_bytes: Most bytes of all of them together, without the pinned one.

    State:
        Grows with `park`, up to the budget.
    """

    def __init__(self, budget_bytes: int = PARKING_BUDGET_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._parked: OrderedDict[tuple[int, ...], Parked] = OrderedDict()
        self._pinned: Parked | None = None
        self._token_bytes = 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes of all copies but the pinned one."""
        return sum(parked.num_bytes for parked in self._parked.values())

    def has_room(self, num_tokens: int) -> bool:
        """Whether a conversation of this length would fit, as far as earlier ones tell."""
        return self._token_bytes * num_tokens <= self._budget_bytes

    def holds(self, token_ids: Sequence[int]) -> bool:
        """Whether some copy begins with all of these tokens."""
        return self.find(token_ids)[1] == len(token_ids)

    def find(self, token_ids: Sequence[int]) -> tuple[Parked | None, int]:
        """Return the copy that has most of these tokens at its beginning, and how many."""
        everyone = [*self._parked.values(), *([self._pinned] if self._pinned else [])]
        best: tuple[Parked | None, int] = (None, 0)
        for parked in everyone:
            num_common = count_common(parked.token_ids, token_ids)
            if num_common > best[1]:
                best = (parked, num_common)
        return best

    def use(self, parked: Parked) -> CacheSnapshot:
        """Return a copy and count it as the one used last.

        Raises:
            EdgeError: It cannot be read.
        """
        if parked.token_ids in self._parked:
            self._parked.move_to_end(parked.token_ids)
        return parked.read()

    def park(self, snapshot: CacheSnapshot) -> None:
        """Keep a copy; those it makes superfluous go, and the oldest where room is short."""
        num_bytes = sum(array.nbytes for array in snapshot.arrays)
        self._token_bytes = num_bytes / max(len(snapshot.token_ids), 1)
        if num_bytes > self._budget_bytes:
            return
        ids = snapshot.token_ids
        for other in [key for key in self._parked if ids[: len(key)] == key]:
            del self._parked[other]
        self._parked[ids] = Parked(ids, num_bytes, lambda: snapshot)
        while self.num_bytes > self._budget_bytes:
            oldest, _ = self._parked.popitem(last=False)
            _LOGGER.debug("Dropped a conversation of %d tokens that was put aside", len(oldest))
        _LOGGER.debug("Put %d tokens aside, %d bytes", len(ids), num_bytes)

    def pin(self, token_ids: Sequence[int], read: Callable[[], CacheSnapshot]) -> None:
        """Keep a copy that is never dropped for room, in the place of an earlier one."""
        self._pinned = Parked(tuple(token_ids), 0, read)

    def drop(self, parked: Parked) -> None:
        """Forget a copy that is of no use."""
        self._parked.pop(parked.token_ids, None)
        if self._pinned is parked:
            self._pinned = None

    def clear(self) -> None:
        """Forget all copies."""
        self._parked.clear()
        self._pinned = None


def count_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two sequences begin with alike."""
    length = min(len(first), len(second))
    if length == 0 or first[0] != second[0]:
        return 0
    differs = np.array(first[:length]) != np.array(second[:length])
    return int(differs.argmax()) if differs.any() else length


def cut_snapshot(snapshot: CacheSnapshot, num_tokens: int) -> CacheSnapshot:
    """Return the beginning of a snapshot, as if the tokens after it had never been fed.

    Args:
        snapshot: Of any backend: arrays of four and five axes have a row per token in the third,
            those of three a block of 16 tokens in the second, one of one axis is a mask with a 1
            per token.
        num_tokens: At most those it has.

    Returns:
        A snapshot whose arrays are views of the other's.
    """
    if num_tokens >= len(snapshot.token_ids):
        return snapshot
    arrays = []
    for array in snapshot.arrays if num_tokens else ():
        if array.ndim == 1:
            end = int(np.flatnonzero(array)[num_tokens - 1]) + 1
            arrays.append(array[:end])
        elif array.ndim == _BLOCK_AXES:
            arrays.append(array[:, : -(-num_tokens // BLOCK_TOKENS)])
        else:
            arrays.append(array[:, :, :num_tokens])
    ids = snapshot.token_ids[:num_tokens]
    return replace(snapshot, token_ids=ids, arrays=tuple(arrays))
