"""One OpenVINO infer request of a decoder: arrays in without a copy, logits out with one.

Knows the names of the model's inputs and how the engine reports failure. It keeps no account
of the cache: `openvino.py` and `openvino_static.py` do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS, LogitsRows
from qwen_edge.runtime.backends.cache_variables import CacheVariables, read_cache_settings
from qwen_edge.runtime.backends.checks import check_finite, closed_error
from qwen_edge.runtime.engine import first_line, import_openvino

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
BEAM_IDX = "beam_idx"
LOGITS = "logits"
_READ_AGAIN = "ask again; the conversation is then read from its start."

Mask = npt.NDArray[np.int64]
"""int64 [1, rows]: 1 where a row of the cache is attended to."""


class DecoderRequest:
    """Runs a compiled decoder on one sequence.

    Args:
        compiled: A compiled model with the inputs and output named above.
        device: For messages.
        is_own_cache: Whether keys and values lie outside the engine.

    State:
        The engine keeps the cache, or is handed it. Arrays bound for one call must not change
        during it.
    """

    def __init__(self, compiled: Any, device: str, *, is_own_cache: bool = False) -> None:
        self._tensor = import_openvino().Tensor
        self._device = device
        self._request: Any = _create_request(compiled, device)
        _, num_scored, vocab_size = compiled.output(LOGITS).get_partial_shape()
        self.vocab_size = int(vocab_size.get_length())
        # -1 where the head was not cut: then there are logits of every position.
        most = int(num_scored.get_max_length())
        self.max_scored_tokens = MAX_SCORED_TOKENS if most < 0 else min(most, MAX_SCORED_TOKENS)
        self.cache_settings: Mapping[str, str] = read_cache_settings(
            compiled, device, is_own_cache=is_own_cache
        )
        self._variables = CacheVariables(
            lambda: self._request.query_state(), self.cache_settings, self._tensor
        )
        # A decode step writes into these two, so that they need binding once only.
        self._one_id = np.zeros((1, 1), dtype=np.int64)
        self._one_position = np.zeros((1, 1), dtype=np.int64)
        # The engine keeps addresses, not references: what is bound must be held here.
        self._bound: tuple[npt.NDArray[np.int64], ...] = ()
        self._mask: Mask | None = None
        # int32 [1]: go on from the only sequence there is.
        self._beam = np.zeros(1, dtype=np.int32)
        self._bind_once()

    def _bind_once(self) -> None:
        """Bind what is the same in all calls."""
        self._request.set_tensor(BEAM_IDX, self._tensor(self._beam, shared_memory=True))

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
        self._mask = mask
        self._request.set_tensor(ATTENTION_MASK, self._tensor(mask, shared_memory=True))
        self.infer(token_ids, first_position)

    def infer(self, token_ids: Sequence[int], first_position: int) -> None:
        """Feed tokens, all else being bound; as `run`."""
        try:
            if len(token_ids) == 1:
                self._one_id[0, 0] = token_ids[0]
                self._one_position[0, 0] = first_position
                self._bind(self._one_id, self._one_position)
            else:
                ids = np.array(token_ids, dtype=np.int64)[None]  # [1, n]
                end = first_position + len(token_ids)
                self._bind(ids, np.arange(first_position, end, dtype=np.int64)[None])
            self._request.infer(None, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise DeviceError(
                f"Device {self._device!r} stopped at {first_position + len(token_ids):,} tokens "
                f"of context: {first_line(error)}.",
                "ask again; if it stops again, use --device CPU and run `qwen-edge doctor`.",
                device=self._device,
                engine_message=str(error),
            ) from error

    def read_logits(self, num_scored: int = 1) -> LogitsRows:
        """Return the logits after the last tokens fed, float32 [num_scored, vocab_size], a copy.

        Args:
            num_scored: From 1 to `max_scored_tokens`, and to the tokens of the last `run`.

        Raises:
            ParityError: One of them is NaN or infinite: no token can be chosen by them.
        """
        data = self._request.get_tensor(LOGITS).data  # [1, n, vocab]: all fed, or the last ones
        logits: LogitsRows = np.array(data[0, -num_scored:], dtype=np.float32)
        check_finite(logits, self._device)
        return logits

    def keep_rows(self, rows: npt.NDArray[np.intp], num_rows: int) -> None:
        """Drop all rows of the cache but these.

        Args:
            rows: Indices to keep, ascending.
            num_rows: Rows the cache is expected to hold now.

        Raises:
            DeviceError: The engine refused. What the cache then holds is unknown.
        """
        self.check_open()
        try:
            self._variables.keep(rows, num_rows)
        except RuntimeError as error:
            raise self._refused("did not let its cache be rewritten", error, _READ_AGAIN) from error

    def pack_rows(self, rows: npt.NDArray[np.intp], num_rows: int) -> list[npt.NDArray[Any]]:
        """Return a packed copy of some rows of the cache; see `CacheVariables.pack`.

        Raises:
            DeviceError: The engine refused, or keeps its cache in a form of its own.
            UsageError: The request is closed.
        """
        self.check_open()
        try:
            return self._variables.pack(rows, num_rows)
        except RuntimeError as error:
            fix = "go on without a snapshot, or use --device CPU."
            raise self._refused("did not let its cache be read", error, fix) from error

    def find_misfit(self, arrays: Sequence[npt.NDArray[Any]], num_tokens: int) -> str | None:
        """Return why packed rows cannot be this model's of so many tokens, or None."""
        self.check_open()
        try:
            return self._variables.find_misfit(arrays, num_tokens)
        except RuntimeError as error:
            return first_line(error)

    def write_rows(
        self, arrays: Sequence[npt.NDArray[Any]], rows: npt.NDArray[np.intp], num_rows: int
    ) -> bool:
        """Put packed rows in the place of what is there; see `CacheVariables.write`.

        Returns:
            Whether the cache is, to the bit, the one that was packed.

        Raises:
            DeviceError: The engine refused. What the cache then holds is unknown.
            UsageError: The request is closed.
        """
        self.check_open()
        try:
            return self._variables.write(arrays, rows, num_rows)
        except RuntimeError as error:
            raise self._refused("did not take a cache", error, _READ_AGAIN) from error

    def find_state(self, name: str) -> Any:
        """Return one of the request's variable states by its name, or None.

        Raises:
            UsageError: The request is closed.
        """
        self.check_open()
        states = self._request.query_state()
        return next((state for state in states if state.name == name), None)

    def check_open(self) -> None:
        """Refuse a closed request.

        Raises:
            UsageError: It is closed.
        """
        if self._request is None:
            raise closed_error()

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

    def _refused(self, what: str, error: RuntimeError, fix: str) -> DeviceError:
        return DeviceError(
            f"Device {self._device!r} {what}: {first_line(error)}.", fix, device=self._device
        )

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
