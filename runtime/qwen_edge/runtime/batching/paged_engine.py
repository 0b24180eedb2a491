"""The seam between paged sequences and the engine that computes over their blocks.

One call takes the new tokens of several sequences, one after the other in flat arrays, with a
table of each sequence's blocks. Read `openvino_paged.py` for the real one, `fake_paged.py` for
one without arithmetic; `paged.py` makes the calls.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime.backends.backend import LogitsRows


@dataclass(frozen=True, eq=False, slots=True)
class PagedCall:
    """The new tokens of several sequences and where their caches are.

    Args:
        token_ids: int64 [tokens], the sequences' one after the other.
        position_ids: int64 [tokens], of each token within its sequence.
        past_lens: int32 [sequences], tokens that are cached already.
        subsequence_begins: int32 [sequences + 1], where each one's tokens begin, and the end.
        block_indices: int32 [blocks], the sequences' tables one after the other.
        block_indices_begins: int32 [sequences + 1], where each table begins, and the end.
        scored_rows: int32 [scored], the tokens after which logits are wanted, at least one.
        max_context_tokens: Length of the longest sequence, the new tokens included.
    """

    token_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    past_lens: npt.NDArray[np.int32]
    subsequence_begins: npt.NDArray[np.int32]
    block_indices: npt.NDArray[np.int32]
    block_indices_begins: npt.NDArray[np.int32]
    scored_rows: npt.NDArray[np.int32]
    max_context_tokens: int


class PagedEngine(Protocol):
    """A model over a cache in blocks. Used by one thread at a time."""

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens per block, at least two."""
        ...

    @property
    def bytes_per_block(self) -> int:
        """Memory of one block, all layers."""
        ...

    @property
    def min_uniform_sequences(self) -> int:
        """Fewer sequences of one token each may be computed by another kernel."""
        ...

    def provide(self, num_blocks: int) -> None:
        """Have memory for the blocks below this number; their contents stay.

        Raises:
            ResourceError: There is not so much.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy the contents of a block."""
        ...

    def run(self, call: PagedCall) -> LogitsRows:
        """Append the tokens; return float32 [scored, vocab_size], owned by the caller.

        Raises:
            DeviceError: The engine refused.
        """
        ...

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        ...


def int32(values: Any) -> npt.NDArray[np.int32]:
    """Return values as the engine takes them, int32 [n]."""
    return np.asarray(values, dtype=np.int32)
