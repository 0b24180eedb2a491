"""A paged engine without arithmetic: its blocks hold token ids, its logits follow a script.

It reads the context of each sequence back from the blocks it was given, so a table that is
wrong, a block that was overwritten, or a beginning that is another's shows in what it says.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends.backend import LogitsRows
from qwen_edge.runtime.batching.paged_engine import PagedCall

_FAVOURED_LOGIT = 10.0
_NOTHING = -1


class FakePagedEngine:
    """An engine that says what a script says.

    Args:
        script: The ids of a sequence so far → the id that should come next; None gives
            logits that are no numbers.
        vocab_size: Length of the logits.
        block_tokens: Tokens per block.
        fail_at_call: The calls of these numbers, counted from 1, raise `DeviceError`.

    State:
        `blocks` is int64 [blocks, block_tokens], -1 where nothing was written. `calls` are
        the calls so far.
    """

    bytes_per_block = 1
    min_uniform_sequences = 2

    def __init__(
        self,
        script: Callable[[Sequence[int]], int | None],
        *,
        vocab_size: int = 256,
        block_tokens: int = 4,
        fail_at_call: Sequence[int] = (),
    ) -> None:
        self._script = script
        self._fail_at_call = frozenset(fail_at_call)
        self.vocab_size = vocab_size
        self.block_tokens = block_tokens
        self.blocks: npt.NDArray[np.int64] = np.full((0, block_tokens), _NOTHING, dtype=np.int64)
        self.calls: list[PagedCall] = []
        self.is_closed = False

    def provide(self, num_blocks: int) -> None:
        """Have room for the blocks below this number."""
        missing = max(num_blocks - len(self.blocks), 0)
        more = np.full((missing, self.block_tokens), _NOTHING, dtype=np.int64)
        self.blocks = np.concatenate([self.blocks, more])

    def copy_block(self, source: int, target: int) -> None:
        """Copy the ids of a block."""
        self.blocks[target] = self.blocks[source]

    def run(self, call: PagedCall) -> LogitsRows:
        """Write the ids into their blocks; return logits that favour what the script says.

        Raises:
            DeviceError: The call is one of `fail_at_call`.
        """
        self.calls.append(call)
        if len(self.calls) in self._fail_at_call:
            raise DeviceError("The fake device refused, as it was told to.", "ask again.")
        rows = {int(row): index for index, row in enumerate(call.scored_rows)}
        logits = np.zeros((len(rows), self.vocab_size), dtype=np.float32)
        for index, past in enumerate(call.past_lens):
            begin, end = call.subsequence_begins[index : index + 2]
            table = call.block_indices[slice(*call.block_indices_begins[index : index + 2])]
            for row, position in enumerate(range(past, past + end - begin), start=begin):
                block, offset = divmod(position, self.block_tokens)
                self.blocks[table[block], offset] = call.token_ids[row]
                if row in rows:
                    context = self.blocks[table].reshape(-1)[: position + 1]
                    token_id = self._script(context.tolist())
                    favoured = slice(None) if token_id is None else token_id
                    value = np.nan if token_id is None else _FAVOURED_LOGIT
                    logits[rows[int(row)], favoured] = value
        return logits

    def close(self) -> None:
        """Refuse nothing; note that it was called."""
        self.is_closed = True
