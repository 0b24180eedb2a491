"""The backend for the CPU whose keys and values lie in memory of ours, not in the engine's state.

Forgetting the last tokens is counting fewer: the next ones are written over them, and nobody looks
at what lies beyond. Positions are places in the cache. A snapshot is a copy of its blocks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import ResourceError
from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.backends.checks import (
    check_snapshot,
    check_trim,
    find_other_setting,
    unfit_snapshot,
)
from qwen_edge.runtime.backends.decoder_backend import DecoderBackend
from qwen_edge.runtime.backends.decoder_request import DecoderRequest
from qwen_edge.runtime.kernels import CACHE, CacheShape, KvCache

_KIND = "openvino-own-cache"
# In a snapshot's settings: caches of another form are refused.
_FORM = "8 bits, a scale for 32 numbers"


class OwnCacheRequest(DecoderRequest):
    """Runs a compiled decoder whose attention reads a cache of ours.

    Args:
        compiled: A compiled model with the input `CACHE`.
        device: For messages.
        cache: Its keys and values.
    """

    def __init__(self, compiled: Any, device: str, cache: KvCache) -> None:
        self._place = np.array([cache.number, 0], dtype=np.int32)
        super().__init__(compiled, device, is_own_cache=True)

    def append(self, token_ids: Sequence[int], num_cached: int) -> None:
        """Feed tokens that come after so many in the cache.

        Raises:
            DeviceError: The engine refused. What the cache then holds beyond is unknown.
            UsageError: The request is closed.
        """
        self.check_open()
        self._place[1] = num_cached
        self.infer(token_ids, num_cached)

    def _bind_once(self) -> None:
        self._request.set_tensor(CACHE, self._tensor(self._place, shared_memory=True))


class OwnCacheBackend(DecoderBackend):
    """One sequence on a compiled decoder, with a cache of its own.

    Args:
        compiled: What `compile_model` returned for a model that `use_attention` changed.
        shape: What `use_attention` returned.
        library: The library of kernels.
        device: For messages.
        max_context_tokens: Most tokens in the cache.
        prefill_chunk_tokens: Most tokens per call of the engine; bounds its working memory.
        keeps_alive: What `compiled` needs; held until the backend is closed.

    State:
        The cache holds `ids`, each at its position; it keeps its memory until all is forgotten.
    """

    def __init__(
        self,
        compiled: Any,
        shape: CacheShape,
        library: Path,
        *,
        device: str,
        max_context_tokens: int,
        prefill_chunk_tokens: int,
        keeps_alive: object = None,
    ) -> None:
        self._cache = KvCache(library, shape)
        self._own_request = OwnCacheRequest(compiled, device, self._cache)
        super().__init__(
            self._own_request,
            max_context_tokens=max_context_tokens,
            prefill_chunk_tokens=prefill_chunk_tokens,
            keeps_alive=keeps_alive,
        )

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens; costs nothing.

        Raises:
            ValueError: `num_tokens` is negative or more than `cached_tokens`.
        """
        check_trim(num_tokens, len(self._ids))
        if num_tokens == len(self._ids):
            self._forget()
        elif num_tokens:
            del self._ids[-num_tokens:]

    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the cache, an array of blocks for each layer.

        Raises:
            UsageError: The backend is closed.
        """
        self._request.check_open()
        arrays = []
        if self._ids:
            for layer in range(self._cache.shape.num_layers):
                arrays.append(self._cache.read(layer, len(self._ids)))
                arrays[-1].flags.writeable = False
        return CacheSnapshot(
            _KIND, self.vocab_size, tuple(self._ids), tuple(arrays), self._settings
        )

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Put a snapshot in the place of the cache; exact.

        Raises:
            UsageError: Another kind of backend or another model took it, or one with other
                settings; or the backend is closed. Nothing changed.
            ContextFullError: It has more tokens than `max_context_tokens`. Nothing changed.
            ResourceError: Memory ran out; the cache is empty now.
        """
        self._request.check_open()
        limit = self._max_context_tokens
        check_snapshot(snapshot, _KIND, vocab_size=self.vocab_size, max_context_tokens=limit)
        problem = find_other_setting(snapshot.settings, self._settings)
        problem = problem or self._find_misfit(snapshot.arrays, len(snapshot.token_ids))
        if problem is not None:
            raise unfit_snapshot(problem)
        self._forget()
        try:
            for layer, blocks in enumerate(snapshot.arrays):
                self._cache.write(layer, len(snapshot.token_ids), blocks)
        except ResourceError:
            self._forget()
            raise
        self._ids = list(snapshot.token_ids)

    def close(self) -> None:
        """Release the engine and the cache. Calling it twice is harmless."""
        super().close()
        self._cache.close()

    @property
    def _settings(self) -> dict[str, str]:
        return {**self._request.cache_settings, "cache": _FORM}

    def _find_misfit(self, arrays: Sequence[npt.NDArray[Any]], num_tokens: int) -> str | None:
        """Return why arrays cannot be this model's cache of so many tokens, or None."""
        expected = self._cache.blocks_shape(num_tokens)
        num_arrays = self._cache.shape.num_layers if num_tokens else 0
        if len(arrays) != num_arrays:
            return f"it has {len(arrays)} arrays, expected {num_arrays} for {num_tokens} tokens"
        for array in arrays:
            if array.shape != expected or array.dtype != np.uint8:
                return f"its arrays are {array.dtype} {array.shape}, expected uint8 {expected}"
        return None

    def _append(self, token_ids: Sequence[int]) -> None:
        self._own_request.append(token_ids, len(self._ids))
        self._ids.extend(token_ids)

    def _forget(self) -> None:
        """Count nothing as cached, and give the memory back."""
        self._ids.clear()
        self._cache.clear()

    def _make_room(self, num_new: int) -> None:
        """Nothing to do: the cache grows as the model appends to it."""
