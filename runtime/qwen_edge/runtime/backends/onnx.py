"""The backend for ONNX Runtime: any provider, the KV cache in arrays of our own.

Positions follow from the length of the mask, so forgetting is going on at a smaller length, and
costs nothing. A single token is written into arrays that are bound already. `onnx_session.py`
makes the session, `onnx_cache.py` keeps the rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import DeviceError, EdgeError, ResourceError
from qwen_edge.runtime.backends.backend import (
    MAX_SCORED_TOKENS,
    CacheSnapshot,
    Logits,
    LogitsRows,
)
from qwen_edge.runtime.backends.checks import (
    check_finite,
    check_num_scored,
    check_room,
    check_snapshot,
    check_token_ids,
    check_trim,
    closed_error,
    unfit_snapshot,
)
from qwen_edge.runtime.backends.chunks import cut_into_chunks
from qwen_edge.runtime.backends.onnx_cache import GrowingCache, OnnxCache, SharedCache
from qwen_edge.runtime.backends.onnx_file import OnnxModel
from qwen_edge.runtime.backends.onnx_session import (
    CPU_PROVIDER,
    engine_message,
    is_memory_failure,
)
from qwen_edge.runtime.devices.providers import import_onnxruntime

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
LOGITS = "logits"
_KIND = "onnx"

Ids = npt.NDArray[np.int64]
"""int64 [1, tokens]."""


class OnnxBackend:
    """One sequence on a session of ONNX Runtime.

    Args:
        session: What `create_session` returned.
        model: What it was made of.
        device: For messages.
        max_context_tokens: Most tokens in the cache.
        prefill_chunk_tokens: Most tokens per call of the engine; bounds its working memory.

    State:
        The cache holds rows of `ids`, and may hold forgotten ones behind them. After any
        failure within the engine it is empty.
    """

    def __init__(
        self,
        session: Any,
        *,
        model: OnnxModel,
        device: str,
        max_context_tokens: int,
        prefill_chunk_tokens: int,
    ) -> None:
        self._session = session
        self._model = model
        self._device = device
        self._max_context_tokens = max_context_tokens
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._ids: list[int] = []
        self._from_numpy = import_onnxruntime().OrtValue.ortvalue_from_numpy
        # Elsewhere what is bound is copied at once, and must be bound again when it changes.
        self._is_on_host = list(session.get_providers()) == [CPU_PROVIDER]
        self._ones = np.ones((1, 0), dtype=np.int64)  # grows with the conversation
        self._one_id = np.zeros((1, 1), dtype=np.int64)
        self._bound_ids: Ids | None = None
        self._logits = np.zeros((1, model.num_last_positions, model.vocab_size), dtype=np.float32)
        self._num_bound_rows = 0
        self._binding: Any = session.io_binding()
        self._bind_logits(1)
        self._cache: OnnxCache
        if self._is_on_host and not model.is_portable:
            self._cache = SharedCache(self._binding, model, max_context_tokens=max_context_tokens)
        else:
            self._cache = GrowingCache(self._binding, model)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache that are still part of the sequence."""
        return len(self._ids)

    @property
    def max_context_tokens(self) -> int:
        """Most tokens that `cached_tokens` may reach."""
        return self._max_context_tokens

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._model.vocab_size

    def forward(self, token_ids: Sequence[int]) -> Logits:
        """Append tokens; return the logits after the last, float32 [vocab_size], a copy.

        Raises:
            ContextFullError: The cache would exceed `max_context_tokens`. Nothing changed.
            DeviceError: The engine refused; the cache is empty now.
            ParityError: The logits are not finite; the cache is empty now.
            ResourceError: Memory did not suffice; the cache is empty now.
            UsageError: The backend is closed.
            ValueError: No ids, or ids outside the vocabulary. Nothing changed.
        """
        logits: Logits = self._compute(token_ids, 1)[0]
        return logits

    @property
    def max_scored_tokens(self) -> int:
        """Most tokens after which one call gives logits."""
        return min(self._model.num_last_positions, MAX_SCORED_TOKENS, self._prefill_chunk_tokens)

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        """Append tokens; return the logits after each of the last ones, a copy.

        Raises:
            ValueError: `num_scored` is out of range. Nothing changed.
            EdgeError: As `forward`.
        """
        check_num_scored(num_scored, len(token_ids), self.max_scored_tokens)
        return self._compute(token_ids, num_scored)

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens; costs nothing in the engine.

        Raises:
            ValueError: `num_tokens` is negative or more than `cached_tokens`.
        """
        check_trim(num_tokens, len(self._ids))
        if num_tokens:
            del self._ids[len(self._ids) - num_tokens :]

    def reset(self) -> None:
        """Forget everything."""
        self._ids.clear()
        if self._session is not None:
            self._bound_ids = None
            self._cache.clear()

    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the cache: its rows, array by array.

        Raises:
            ResourceError: Memory did not suffice for a copy. Nothing changed.
            UsageError: The backend is closed.
        """
        self._check_open()
        try:
            arrays = self._cache.read(len(self._ids)) if self._ids else []
        except MemoryError as error:
            raise self._stopped(error, len(self._ids)) from error
        for array in arrays:
            array.flags.writeable = False
        return CacheSnapshot(_KIND, self.vocab_size, tuple(self._ids), tuple(arrays))

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Put a snapshot in the place of the cache; exact.

        Raises:
            UsageError: Another kind of backend or another model took it, or the backend is
                closed. Nothing changed.
            ContextFullError: It is longer than `max_context_tokens`. Nothing changed.
            ResourceError: Memory did not suffice; the cache is empty now.
        """
        self._check_open()
        limit = self._max_context_tokens
        check_snapshot(snapshot, _KIND, vocab_size=self.vocab_size, max_context_tokens=limit)
        self._check_arrays(snapshot)
        self.reset()
        if not snapshot.token_ids:
            return
        try:
            self._cache.write(snapshot.arrays)
        except BaseException as error:  # also for Ctrl-C, half way through the layers
            self.reset()
            if isinstance(error, MemoryError):
                raise self._stopped(error, len(snapshot.token_ids)) from error
            raise
        self._ids = list(snapshot.token_ids)

    def close(self) -> None:
        """Release the engine. Calling it twice is harmless."""
        self._ids.clear()
        if self._session is not None:
            self._session = self._binding = self._bound_ids = None
            del self._cache

    def _check_open(self) -> None:
        if self._session is None:
            raise closed_error()

    def _compute(self, token_ids: Sequence[int], num_scored: int) -> LogitsRows:
        """Append tokens; return the logits after each of the last ones."""
        self._check_open()
        check_token_ids(token_ids, self.vocab_size)
        check_room(len(self._ids), len(token_ids), self._max_context_tokens)
        try:
            for chunk in cut_into_chunks(token_ids, self._prefill_chunk_tokens, num_scored):
                self._append(chunk)
            return self._read_logits(num_scored)
        except BaseException:
            # Also for Ctrl-C: whether the engine wrote before it is unknown.
            self.reset()
            raise

    def _append(self, token_ids: Sequence[int]) -> None:
        end = len(self._ids) + len(token_ids)
        try:
            self._cache.prepare(len(self._ids), end)
            self._bind_ids(token_ids)
            self._bind(ATTENTION_MASK, self._mask(end))
            self._bind_logits(min(len(token_ids), self._model.num_last_positions))
            self._session.run_with_iobinding(self._binding)
            self._cache.keep()
        except Exception as error:  # the engine's classes have no common one
            raise self._stopped(error, end) from error
        self._ids.extend(token_ids)

    def _mask(self, end: int) -> Ids:
        """Return int64 [1, end] of ones, of an array that is held here."""
        if self._ones.shape[1] < end:
            length = max(end, min(2 * end, self._max_context_tokens))
            self._ones = np.ones((1, length), dtype=np.int64)
        return self._ones[:, :end]

    def _bind_ids(self, token_ids: Sequence[int]) -> None:
        ids = self._one_id
        if len(token_ids) == 1:
            ids[0, 0] = token_ids[0]
        else:
            ids = np.array(token_ids, dtype=np.int64)[None]
        if ids is not self._bound_ids or not self._is_on_host:
            self._bound_ids = None  # should Ctrl-C come in between, it is bound anew
            self._bind(INPUT_IDS, ids)
            self._bound_ids = ids

    def _bind(self, name: str, array: Ids) -> None:
        """Bind an array that is held elsewhere for as long as it is bound."""
        self._binding.bind_ortvalue_input(name, self._from_numpy(array))

    def _bind_logits(self, num_rows: int) -> None:
        """Bind room for as many rows as the call gives, which must be neither more nor fewer."""
        if num_rows == self._num_bound_rows:
            return
        self._num_bound_rows = 0  # should Ctrl-C come in between, it is bound anew
        if self._is_on_host:
            room = self._from_numpy(self._logits[:, :num_rows])
            self._binding.bind_ortvalue_output(LOGITS, room)
        else:
            self._binding.bind_output(LOGITS)  # the engine brings them to the host
        self._num_bound_rows = num_rows

    def _read_logits(self, num_scored: int) -> LogitsRows:
        """Return the last rows of the last call, float32 [num_scored, vocab_size], a copy."""
        rows = self._logits[0] if self._is_on_host else self._binding.get_outputs()[0].numpy()[0]
        first = self._num_bound_rows - num_scored
        logits: LogitsRows = np.array(rows[first : self._num_bound_rows], dtype=np.float32)
        check_finite(logits, self._device)
        return logits

    def _stopped(self, error: Exception, num_tokens: int) -> EdgeError:
        """Return what a failure within the engine means."""
        told = engine_message(error)
        if is_memory_failure(error):
            return ResourceError(
                f"Memory did not suffice on device {self._device!r} at {num_tokens:,} tokens of "
                f"context: {told}.",
                "close other programs, start a new conversation, or shorten this one.",
                device=self._device,
                engine_message=str(error),
            )
        return DeviceError(
            f"Device {self._device!r} stopped at {num_tokens:,} tokens of context: {told}.",
            "ask again; if it stops again, use --device CPU and run `qwen-edge doctor`.",
            device=self._device,
            engine_message=str(error),
        )

    def _check_arrays(self, snapshot: CacheSnapshot) -> None:
        """Refuse arrays that are not this model's."""
        model, num_rows = self._model, len(snapshot.token_ids)
        shape = (1, model.num_kv_heads, num_rows, model.head_dim)
        expected = [shape] * (2 * model.num_layers if num_rows else 0)
        found = [array.shape for array in snapshot.arrays]
        if found != expected or any(array.dtype != np.float32 for array in snapshot.arrays):
            raise unfit_snapshot(
                f"it has {len(found)} arrays of shapes {found[:1]}, expected {len(expected)} of "
                f"{expected[:1]}"
            )
