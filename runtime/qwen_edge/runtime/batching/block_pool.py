"""Who holds which block of a cache: reference counts, the free ones, and what may be reused.

A block that nobody holds any more keeps its contents under its name until its memory is needed;
the one unused for longest goes first. It counts and names only: contents and memory are the
engine's (`paged.py`).
"""

from collections import OrderedDict

from qwen_edge.runtime.batching.block_keys import BlockKey


class BlockPool:
    """The blocks of one cache.

    Args:
        num_blocks: Most blocks there may be, at least one.

    State:
        Each block is held by someone, or cached under a name, or free, or never used so far.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_touched = 0
        """Blocks that were ever used: the memory that is needed."""
        self._num_holders: list[int] = []
        self._free: list[int] = []
        self._keys: dict[int, BlockKey] = {}
        self._blocks: dict[BlockKey, int] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()  # named ones, next to go first

    @property
    def num_available(self) -> int:
        """How many blocks `take` could return."""
        return self.num_blocks - self.num_touched + len(self._free) + len(self._unheld)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds and that can still be found by name."""
        return len(self._unheld)

    @property
    def num_held(self) -> int:
        """Blocks that somebody holds."""
        return self.num_touched - len(self._free) - len(self._unheld)

    def take(self) -> int:
        """Return a block without a name, held once; at least one must be available."""
        if self._free:
            block = self._free.pop()
        elif self.num_touched < self.num_blocks:
            block = self.num_touched
            self.num_touched += 1
            self._num_holders.append(0)
        else:
            block, _ = self._unheld.popitem(last=False)
            del self._blocks[self._keys.pop(block)]
        self._num_holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Hold a block that somebody holds or that was found by name."""
        self._unheld.pop(block, None)
        self._num_holders[block] += 1

    def is_shared(self, block: int) -> bool:
        """Return whether a block must not be written to: several hold it, or it has a name."""
        return self._num_holders[block] != 1 or block in self._keys

    def release(self, block: int) -> None:
        """Let go of a block. With a name it is kept, as the last to go."""
        self._num_holders[block] -= 1
        if self._num_holders[block]:
            return
        if block in self._keys:
            self._unheld[block] = None
        else:
            self._free.append(block)

    def name(self, block: int, key: BlockKey) -> None:
        """Give a held block its name; where another has it already, this one stays without."""
        if key not in self._blocks:
            self._blocks[key] = block
            self._keys[block] = key

    def find(self, key: BlockKey) -> int | None:
        """Return the block of a name, or None."""
        return self._blocks.get(key)

    def forget_names(self) -> None:
        """Make nothing reusable any more; who holds what stays as it is."""
        self._keys.clear()
        self._blocks.clear()
        self._free.extend(self._unheld)
        self._unheld.clear()
