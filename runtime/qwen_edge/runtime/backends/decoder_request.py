"""One OpenVINO infer request of a decoder: arrays in without a copy, logits out with one.

Knows the names of the model's inputs and how the engine reports failure. It keeps no account
of the cache: `openvino.py` and `openvino_static.py` do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends.backend import Logits
from qwen_edge.runtime.backends.checks import check_finite, closed_error
from qwen_edge.runtime.engine import first_line, import_openvino

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
BEAM_IDX = "beam_idx"
LOGITS = "logits"

Mask = npt.NDArray[np.int64]
"""int64 [1, rows]: 1 where a row of the cache is attended to."""


class DecoderRequest:
    """Runs a compiled decoder on one sequence.

    Args:
        compiled: A compiled model with the inputs and output named above.
        device: For messages.

    State:
        The engine keeps the cache. Arrays bound for one call must not change during it.
    """

    def __init__(self, compiled: Any, device: str) -> None:
        self._tensor = import_openvino().Tensor
        self._device = device
        self._request: Any = _create_request(compiled, device)
        self.vocab_size = int(compiled.output(LOGITS).get_partial_shape()[2].get_length())
        # A decode step writes into these two, so that they need binding once only.
        self._one_id = np.zeros((1, 1), dtype=np.int64)
        self._one_position = np.zeros((1, 1), dtype=np.int64)
        # int32 [1]: go on from the only sequence there is.
        self._beam = np.zeros(1, dtype=np.int32)
        self._request.set_tensor(BEAM_IDX, self._tensor(self._beam, shared_memory=True))
        # The engine keeps addresses, not references: what is bound must be held here.
        self._bound: tuple[npt.NDArray[np.int64], ...] = ()
        self._mask: Mask | None = None

    def run(self, token_ids: Sequence[int], mask: Mask, first_position: int) -> None:
        """Feed tokens; the cache grows by their number.

        Args:
            token_ids: At least one id.
            mask: int64 [1, rows + len(token_ids)], C-contiguous.
            first_position: Position of the first id; the others follow it.

        Raises:
            DeviceError: The engine refused. What the cache then holds is unknown.
            UsageError: The request is closed.
        """
        self.check_open()
        request = self._request
        try:
            if len(token_ids) == 1:
                self._one_id[0, 0] = token_ids[0]
                self._one_position[0, 0] = first_position
                self._bind(self._one_id, self._one_position)
            else:
                ids = np.array(token_ids, dtype=np.int64)[None]  # [1, n]
                end = first_position + len(token_ids)
                self._bind(ids, np.arange(first_position, end, dtype=np.int64)[None])
            self._mask = mask
            request.set_tensor(ATTENTION_MASK, self._tensor(mask, shared_memory=True))
            request.infer(None, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise DeviceError(
                f"Device {self._device!r} stopped at {first_position + len(token_ids):,} tokens "
                f"of context: {first_line(error)}.",
                "ask again; if it stops again, use --device CPU and run `qwen-edge doctor`.",
                device=self._device,
                engine_message=str(error),
            ) from error

    def read_logits(self) -> Logits:
        """Return the logits after the last token fed, float32 [vocab_size], owned by the caller.

        Raises:
            ParityError: One of them is NaN or infinite: no token can be chosen by them.
        """
        data = self._request.get_tensor(LOGITS).data  # [1, n, vocab]: n or, sliced, 1
        logits: Logits = np.array(data[0, -1], dtype=np.float32)
        check_finite(logits, self._device)
        return logits

    def keep_rows(self, rows: npt.NDArray[np.intp], num_rows: int) -> None:
        """Drop all rows of the cache but these, one variable after the other.

        Args:
            rows: Indices to keep, ascending.
            num_rows: Rows the cache is expected to hold now.

        Raises:
            DeviceError: The engine refused. What the cache then holds is unknown.
        """

        try:
            for variable in self._request.query_state():
                values = variable.state.data  # [1, kv_heads, rows, head_dim]
                _check_rows(values.shape, num_rows)
                kept = np.ascontiguousarray(values[:, :, rows])
                variable.state = self._tensor(kept, shared_memory=False)
        except RuntimeError as error:
            raise DeviceError(
                f"Device {self._device!r} did not let its cache be rewritten: {first_line(error)}.",
                "ask again; the conversation is then read from its start.",
                device=self._device,
            ) from error

    def read_rows(self, num_rows: int) -> list[npt.NDArray[Any]]:
        """Return a copy of the cache: an array per variable, sorted by the variables' names.

        Args:
            num_rows: Rows the cache is expected to hold.

        Raises:
            DeviceError: The engine refused, or keeps its cache in a form of its own.
            UsageError: The request is closed.
        """
        arrays = []
        try:
            for variable in self._variables():
                values = variable.state.data  # [1, kv_heads, rows, head_dim]
                _check_rows(values.shape, num_rows)
                arrays.append(np.array(values))
        except RuntimeError as error:
            raise DeviceError(
                f"Device {self._device!r} did not let its cache be read: {first_line(error)}.",
                "go on without a snapshot, or use --device CPU.",
                device=self._device,
            ) from error
        return arrays

    def find_misfit(self, arrays: Sequence[npt.NDArray[Any]], num_rows: int) -> str | None:
        """Return why arrays cannot be this model's cache of so many rows, or None."""
        shapes = [tuple(variable.state.shape) for variable in self._variables()]
        # Whatever it holds now, empty or not, heads and their size are the model's own.
        expected = [(1, shape[1], num_rows, shape[3]) for shape in shapes if len(shape) == 4]
        found = [array.shape for array in arrays]
        if found == expected and all(array.dtype == np.float32 for array in arrays):
            return None
        return f"its arrays have shapes {found[:2]}, expected {expected[:2]}"

    def write_rows(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Put a copy of the cache, as `read_rows` gave it, in the place of what is there.

        Raises:
            DeviceError: The engine refused. What the cache then holds is unknown.
            UsageError: The request is closed.
        """
        try:
            for variable, values in zip(self._variables(), arrays, strict=True):
                variable.state = self._tensor(np.array(values), shared_memory=False)
        except RuntimeError as error:
            raise DeviceError(
                f"Device {self._device!r} did not take a cache: {first_line(error)}.",
                "ask again; the conversation is then read from its start.",
                device=self._device,
            ) from error

    def check_open(self) -> None:
        """Refuse a closed request.

        Raises:
            UsageError: It is closed.
        """
        if self._request is None:
            raise closed_error()

    def _variables(self) -> list[Any]:
        self.check_open()
        # The engine's order is by nothing that is promised, and differs between compilations.
        return sorted(self._request.query_state(), key=lambda variable: str(variable.name))

    def reset(self) -> None:
        """Empty the engine's cache.

        Raises:
            DeviceError: The engine refused.
            UsageError: The request is closed.
        """
        self.check_open()
        try:
            self._request.reset_state()
        except RuntimeError as error:
            raise DeviceError(
                f"Device {self._device!r} did not empty its cache: {first_line(error)}.",
                "load the model again.",
                device=self._device,
            ) from error

    def close(self) -> None:
        """Let go of the engine's memory; calling it twice is harmless."""
        self._request = None

    def _bind(self, ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> None:
        if self._bound and self._bound[0] is ids:
            return
        self._bound = (ids, positions)
        self._request.set_tensor(INPUT_IDS, self._tensor(ids, shared_memory=True))
        self._request.set_tensor(POSITION_IDS, self._tensor(positions, shared_memory=True))


def _create_request(compiled: Any, device: str) -> Any:
    """Create the infer request; drivers allocate their buffers here."""
    try:
        return compiled.create_infer_request()
    except RuntimeError as error:
        raise DeviceError(
            f"Device {device!r} could not set the model up: {first_line(error)}.",
            "close other programs that use the device, or run with --device CPU.",
            device=device,
            engine_message=str(error),
        ) from error


def _check_rows(shape: tuple[int, ...], num_rows: int) -> None:
    """Refuse a cache that is not [batch, kv_heads, rows, head_dim]: a plugin's own form."""
    if len(shape) != 4 or shape[2] != num_rows:
        raise RuntimeError(f"it has shape {shape}, expected {num_rows} rows")
