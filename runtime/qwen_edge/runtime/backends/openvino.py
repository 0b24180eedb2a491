"""The backend over the engine's own cache, on CPU and GPU: it grows row by row.

Forgetting costs nothing. The engine can only append to its cache, so a forgotten token stays
there as a *hole*: `attention_mask` is 0 at its row, no later token sees it, and positions go on
as if it had never been. The logits are those of a cache without it. When holes pile up the
cache is rewritten once without them. `decoder_request.py` talks to the engine.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.backends.checks import (
    check_room,
    check_snapshot,
    check_trim,
    find_other_setting,
    unfit_snapshot,
)
from qwen_edge.runtime.backends.decoder_backend import DecoderBackend
from qwen_edge.runtime.backends.decoder_request import DecoderRequest

_LOGGER = logging.getLogger(__name__)
# Rewriting costs 220 ms at 1,100 tokens (Qwen3-4B, 2 cores), a hole a little of every step:
# at half the cache both are small beside the tokens computed since the last rewriting.
MIN_HOLES_TO_COMPACT = 256
_KIND = "openvino"


class OpenVinoBackend(DecoderBackend):
    """One sequence on a compiled, stateful decoder.

    Args:
        compiled: What `compile_model` returned.
        device: For messages.
        max_context_tokens: Most tokens in the cache.
        prefill_chunk_tokens: Most tokens per call of the engine; bounds its working memory.
        min_holes_to_compact: Holes below which the cache is not rewritten, unless it is full.
        keeps_alive: What `compiled` needs; held until the backend is closed.

    State:
        The engine holds `num_rows` rows, those of `ids` among them; `mask[0, :num_rows]` is 1
        at these. After any failure within the engine the cache is empty.
    """

    def __init__(
        self,
        compiled: Any,
        *,
        device: str,
        max_context_tokens: int,
        prefill_chunk_tokens: int,
        min_holes_to_compact: int = MIN_HOLES_TO_COMPACT,
        keeps_alive: object = None,
    ) -> None:
        super().__init__(
            DecoderRequest(compiled, device),
            max_context_tokens=max_context_tokens,
            prefill_chunk_tokens=prefill_chunk_tokens,
            keeps_alive=keeps_alive,
        )
        self._min_holes_to_compact = min_holes_to_compact
        self._mask = np.zeros((1, max_context_tokens), dtype=np.int64)
        self._num_rows = 0
        self._must_reset = False
        self.num_compactions = 0

    @property
    def num_holes(self) -> int:
        """Rows in the engine's cache that no token attends to any more."""
        return self._num_rows - len(self._ids)

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens by making holes of them; costs nothing in the engine.

        Raises:
            ValueError: `num_tokens` is negative or more than `cached_tokens`.
        """
        check_trim(num_tokens, len(self._ids))
        if num_tokens == len(self._ids):
            self._forget()
        elif num_tokens:
            rows = np.flatnonzero(self._mask[0, : self._num_rows])
            self._mask[0, rows[-num_tokens:]] = 0
            del self._ids[-num_tokens:]

    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the cache: its mask, and the packed rows of its tokens.

        A hole stays a hole, so that nothing moves when the cache comes back; what was in it is
        left out, since nobody looks there.

        Raises:
            DeviceError: The engine keeps its cache in a form of its own.
            UsageError: The backend is closed.
        """
        self._request.check_open()
        arrays = []
        if self._ids:
            mask = self._mask[0, : self._num_rows].astype(np.uint8)
            arrays = [mask, *self._request.pack_rows(np.flatnonzero(mask), self._num_rows)]
        for array in arrays:
            array.flags.writeable = False
        return CacheSnapshot(
            _KIND,
            self.vocab_size,
            tuple(self._ids),
            tuple(arrays),
            self._request.cache_settings,
        )

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Put a snapshot in the place of the cache; exact.

        Where the engine does not arrive at the very cache that was copied, the tokens are fed
        again instead.

        Raises:
            UsageError: Another kind of backend or another model took it, or one with other
                settings; or the backend is closed. Nothing changed.
            ContextFullError: It has more rows than `max_context_tokens`. Nothing changed.
            DeviceError: The engine refused; the cache is empty now.
        """
        self._request.check_open()
        limit = self._max_context_tokens
        check_snapshot(snapshot, _KIND, vocab_size=self.vocab_size, max_context_tokens=limit)
        self._check_arrays(snapshot)
        self._forget()
        if not snapshot.token_ids:
            return
        mask, *packed = snapshot.arrays
        try:
            if self._request.write_rows(packed, np.flatnonzero(mask), mask.size):
                self._num_rows = mask.size
                self._mask[0, : mask.size] = mask
                self._ids = list(snapshot.token_ids)
                self._must_reset = False
            else:
                _LOGGER.warning("The copy of a cache did not come back to the bit")
                self._read_again(snapshot.token_ids)
        except BaseException:
            self._forget()
            raise

    def _check_arrays(self, snapshot: CacheSnapshot) -> None:
        """Refuse arrays that are not this model's, or that have no room here."""
        mask, packed = snapshot.arrays[:1], snapshot.arrays[1:]
        settings = self._request.cache_settings
        problem = find_other_setting(snapshot.settings, settings)
        if problem is not None:
            raise unfit_snapshot(problem)
        if not snapshot.token_ids:
            problem = "it has arrays of no tokens" if snapshot.arrays else None
        elif not mask or not _is_mask_of(mask[0], len(snapshot.token_ids)):
            problem = "its mask is not that of its tokens"
        else:
            check_room(0, mask[0].size, self._max_context_tokens)
            problem = self._request.find_misfit(packed, len(snapshot.token_ids))
        if problem is not None:
            raise unfit_snapshot(problem)

    def _append(self, token_ids: Sequence[int]) -> None:
        end = self._num_rows + len(token_ids)
        self._mask[0, self._num_rows : end] = 1
        self._request.run(token_ids, self._mask[:, :end], len(self._ids))
        self._num_rows = end
        self._ids.extend(token_ids)

    def _forget(self) -> None:
        """Count nothing as cached; the engine is told at the next `forward`."""
        self._num_rows = 0
        self._ids.clear()
        self._must_reset = True

    def _make_room(self, num_new: int) -> None:
        """Empty the engine's cache if that is due, or rewrite it where holes are in the way."""
        if self._must_reset:
            self._request.reset()
            self._must_reset = False
        holes = self.num_holes
        is_full = self._num_rows + num_new > self._max_context_tokens
        are_many = holes > self._min_holes_to_compact and holes > len(self._ids)
        if holes and (is_full or are_many):
            self._compact()

    def _compact(self) -> None:
        """Drop the holes; where the engine does not let its cache be rewritten, read again."""
        live = np.flatnonzero(self._mask[0, : self._num_rows])
        self.num_compactions += 1
        try:
            self._request.keep_rows(live, self._num_rows)
        except DeviceError as error:
            _LOGGER.info("The cache cannot be rewritten: %s", error.problem)
            self._read_again(self._ids)
            return
        _LOGGER.debug("Rewrote the cache: %d rows, %d of them live", self._num_rows, live.size)
        self._num_rows = live.size
        self._mask[0, : self._num_rows] = 1

    def _read_again(self, token_ids: Sequence[int]) -> None:
        """Feed tokens to an empty cache."""
        ids = list(token_ids)
        _LOGGER.info("Reading %d tokens again", len(ids))
        self._forget()
        self._make_room(0)
        self._feed(ids)


def _is_mask_of(mask: npt.NDArray[Any], num_tokens: int) -> bool:
    """Whether an array says of each row if it is one of so many tokens'."""
    if mask.dtype != np.uint8 or mask.ndim != 1 or not mask.size:
        return False
    return int(mask.max()) == 1 and np.count_nonzero(mask) == num_tokens
