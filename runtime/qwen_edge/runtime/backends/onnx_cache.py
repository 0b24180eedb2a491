"""The KV cache of an ONNX model: arrays of our own, bound to the engine's inputs and outputs.

Two forms, by what runs the model. `SharedCache` has one array per layer and kind, which is past
and present at once: a step writes its rows behind the others, and forgetting is going on at a
smaller length. `GrowingCache` takes what a step gave as the past of the next one. Neither knows
which tokens its rows are; `onnx.py` does.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime.backends.onnx_file import OnnxModel
from qwen_edge.runtime.devices.providers import import_onnxruntime

FIRST_CAPACITY_TOKENS = 1024
"""Rows at first; a longer conversation doubles them. Memory is taken as they are written."""

Rows = npt.NDArray[np.float32]
"""float32 [1, kv_heads, rows, head_dim]."""


class OnnxCache(Protocol):
    """What the backend asks of either form. Every array is of one layer, keys before values."""

    def prepare(self, num_cached: int, num_rows: int) -> None:
        """Bind a cache whose first `num_cached` rows count, with room for `num_rows`."""

    def keep(self) -> None:
        """Take what a step has written."""

    def read(self, num_rows: int) -> list[Rows]:
        """Return a copy of the first rows."""

    def write(self, arrays: Sequence[Rows]) -> None:
        """Put these rows in the place of all there are; the arrays are not changed."""

    def clear(self) -> None:
        """Let go of all rows, and of memory beyond that of an empty cache."""


class SharedCache:
    """Arrays that are past and present at once.

    For models with ONNX Runtime's own attention, all of whose nodes run on the CPU: elsewhere
    the engine copies what is bound, and what a step wrote is lost.

    Args:
        binding: The session's IO binding.
        model: For names and sizes.
        max_context_tokens: Most rows.

    State:
        Rows past those that count hold zeros or what was forgotten; the attention does not see
        them. The engine keeps addresses, so what is bound is held here.
    """

    def __init__(self, binding: Any, model: OnnxModel, *, max_context_tokens: int) -> None:
        self._binding = binding
        self._model = model
        self._max_context_tokens = max_context_tokens
        self._names = cache_names(model)
        self._buffers: list[Rows] = []
        self._values: list[Any] = []
        self._capacity = 0
        self._set_capacity(self._first_capacity)

    @property
    def capacity(self) -> int:
        """Rows there is room for; 0 after an interruption, when the arrays may differ."""
        return self._capacity

    @property
    def _first_capacity(self) -> int:
        return min(FIRST_CAPACITY_TOKENS, self._max_context_tokens)

    def prepare(self, num_cached: int, num_rows: int) -> None:
        """Make room for `num_rows`, keeping the first `num_cached`."""
        capacity = max(self._capacity, self._first_capacity)
        while capacity < num_rows:
            capacity *= 2
        if capacity != self._capacity:
            self._set_capacity(min(capacity, self._max_context_tokens), num_kept=num_cached)

    def keep(self) -> None:
        """Do nothing: the rows are where they belong."""

    def read(self, num_rows: int) -> list[Rows]:
        """Return a copy of the first rows."""
        return [buffer[:, :, :num_rows].copy() for buffer in self._buffers]

    def write(self, arrays: Sequence[Rows]) -> None:
        """Put a copy of these rows in the place of all there are."""
        num_rows = arrays[0].shape[2]
        self.prepare(0, num_rows)
        for buffer, rows in zip(self._buffers, arrays, strict=True):
            buffer[:, :, :num_rows] = rows

    def clear(self) -> None:
        """Let go of memory beyond that of an empty cache; rows are overwritten anyway."""
        if self._capacity != self._first_capacity:
            self._set_capacity(self._first_capacity)

    def _set_capacity(self, capacity: int, *, num_kept: int = 0) -> None:
        """Replace the arrays one after the other, so that only one of them is there twice."""
        from_numpy = import_onnxruntime().OrtValue.ortvalue_from_numpy
        shape = (1, self._model.num_kv_heads, capacity, self._model.head_dim)
        self._capacity = 0  # nothing can be relied on until all are bound
        for index, (past, present) in enumerate(self._names):
            # Zeros, since what lies there unseen must not become NaN times 0; and the system
            # gives them page by page, as they are written.
            buffer = np.zeros(shape, dtype=np.float32)
            if num_kept:
                buffer[:, :, :num_kept] = self._buffers[index][:, :, :num_kept]
            value = from_numpy(buffer)
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)
            # What was bound before is let go of only now that the engine has another.
            self._buffers[index : index + 1] = [buffer]
            self._values[index : index + 1] = [value]
        self._capacity = capacity


class GrowingCache:
    """The engine's own arrays: what a step gave is the past of the next.

    For models of standard operators, which join past and new rows into new arrays, and for
    providers with memory of their own. Every step copies the whole cache.

    Args:
        binding: The session's IO binding; exactly one output is bound already, the logits.
        model: For names and sizes.

    State:
        `values` holds at least the rows that count; `prepare` cuts the others off.
    """

    def __init__(self, binding: Any, model: OnnxModel) -> None:
        self._binding = binding
        self._names = cache_names(model)
        self._shape = (1, model.num_kv_heads, 0, model.head_dim)
        self._from_numpy = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._values: list[Any] = []
        self.clear()

    def prepare(self, num_cached: int, num_rows: int) -> None:
        """Bind the first `num_cached` rows as past, and ask for new arrays as present."""
        del num_rows
        if self._values[0].shape()[2] != num_cached:
            self.write(self.read(num_cached))
        for (past, present), value in zip(self._names, self._values, strict=True):
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_output(present)

    def keep(self) -> None:
        """Take the new arrays."""
        _, *self._values = self._binding.get_outputs()  # in the order of their binding

    def read(self, num_rows: int) -> list[Rows]:
        """Return a copy of the first rows."""
        return [np.array(value.numpy()[:, :, :num_rows]) for value in self._values]

    def write(self, arrays: Sequence[Rows]) -> None:
        """Put these rows in the place of all there are: the engine reads them where they lie."""
        # The value holds a reference to the array it is made of.
        self._values = [self._from_numpy(np.ascontiguousarray(rows)) for rows in arrays]

    def clear(self) -> None:
        """Let go of all rows."""
        empty = np.zeros(self._shape, dtype=np.float32)
        self._values = [self._from_numpy(empty) for _ in self._names]


def cache_names(model: OnnxModel) -> list[tuple[str, str]]:
    """Return the names of past and present of every array, in the order of the graph's outputs."""
    return [
        (f"past_key_values.{layer_index}.{kind}", f"present.{layer_index}.{kind}")
        for layer_index in range(model.num_layers)
        for kind in ("key", "value")
    ]
