"""The engine for many sequences on the CPU: a decoder whose cache is blocks of our memory.

The blocks of a layer are one tensor, allocated here and handed to every call. It grows by being
copied into a larger one, so that a budget costs nothing before it is needed. `paged_model.py`
makes the decoder, `paged.py` the calls.
"""

import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import DeviceError, ResourceError
from qwen_edge.runtime.backends.backend import LogitsRows
from qwen_edge.runtime.backends.checks import closed_error
from qwen_edge.runtime.backends.decoder_request import INPUT_IDS, LOGITS, POSITION_IDS
from qwen_edge.runtime.batching.paged_engine import PagedCall
from qwen_edge.runtime.batching.paged_model import KEY_CACHE, SCORED_ROWS, VALUE_CACHE
from qwen_edge.runtime.engine import first_line, import_openvino

_LOGGER = logging.getLogger(__name__)
_ALIGNMENT_BYTES = 64  # a cache line, and the widest vector
_FEWEST_ROWS = 2


class _Layer:
    """The keys or the values of one layer.

    Args:
        port: The compiled model's input for them.

    State:
        `bytes` is uint8 [blocks, bytes per block].
    """

    def __init__(self, port: Any) -> None:
        shape = port.get_partial_shape()  # [?, kv_heads, rows, row size]
        self.name: str = port.get_any_name()
        self.block_shape = [shape[axis].get_length() for axis in range(1, len(shape))]
        self.element_type = port.get_element_type()
        self.bytes_per_block = math.prod(self.block_shape) * self.element_type.bitwidth // 8
        self.bytes: npt.NDArray[np.uint8] = np.zeros((0, self.bytes_per_block), dtype=np.uint8)

    def grow(self, num_blocks: int) -> None:
        """Move to a larger memory where that is needed; what was never used is zeros."""
        if num_blocks <= len(self.bytes):
            return
        size = num_blocks * self.bytes_per_block
        memory = np.zeros(size + _ALIGNMENT_BYTES, dtype=np.uint8)  # pages come when touched
        start = -memory.ctypes.data % _ALIGNMENT_BYTES
        grown = memory[start : start + size].reshape(num_blocks, self.bytes_per_block)
        grown[: len(self.bytes)] = self.bytes
        self.bytes = grown


class OpenVinoPagedEngine:
    """A compiled decoder over blocks.

    Args:
        compiled: What `compile_paged` returned.

    State:
        Holds the memory of the blocks. Used by one thread at a time.
    """

    def __init__(self, compiled: Any) -> None:
        self._tensor = import_openvino().Tensor
        self._device = "CPU"
        self._compiled = compiled
        self._request: Any = compiled.create_infer_request()
        self._layers = [
            _Layer(port)
            for port in compiled.inputs
            if port.get_any_name().startswith((KEY_CACHE, VALUE_CACHE))
        ]
        values = next(layer for layer in self._layers if layer.name.startswith(VALUE_CACHE))
        self.block_tokens: int = values.block_shape[1]
        self.bytes_per_block = sum(layer.bytes_per_block for layer in self._layers)
        self.vocab_size = int(compiled.output(LOGITS).get_partial_shape()[2].get_length())
        # With fewer sequences than threads, the kernel splits them among the threads.
        # Source: executor_pa.cpp of the CPU plugin, 2025 and 2026.4.1 (bit-compared).
        self.min_uniform_sequences = int(compiled.get_property("INFERENCE_NUM_THREADS"))

    def provide(self, num_blocks: int) -> None:
        """Have memory for the blocks below this number; their contents stay.

        Raises:
            ResourceError: There is not so much. What was there still is.
        """
        if self._request is None:
            return  # `run` says so
        openvino = import_openvino()
        try:
            for layer in self._layers:
                layer.grow(num_blocks)
                shape = openvino.Shape([len(layer.bytes), *layer.block_shape])
                tensor = self._tensor(layer.bytes.reshape(-1), shape, layer.element_type)
                self._request.set_tensor(layer.name, tensor)
        except MemoryError as error:
            raise ResourceError(
                f"There is no memory for {num_blocks:,} blocks of {self.bytes_per_block:,} bytes "
                "of cache.",
                "close other programs, or give the cache less memory.",
                num_blocks=num_blocks,
            ) from error
        _LOGGER.debug("The cache has %d blocks now", num_blocks)

    def copy_block(self, source: int, target: int) -> None:
        """Copy the contents of a block, all layers; exact in any precision."""
        for layer in self._layers:
            layer.bytes[target] = layer.bytes[source]

    def run(self, call: PagedCall) -> LogitsRows:
        """Append the tokens; return float32 [scored, vocab_size], a copy.

        Raises:
            DeviceError: The engine refused. What the blocks then hold is unknown.
            UsageError: The engine is closed.
        """
        request = self._request
        if request is None:
            raise closed_error()
        arrays: dict[str, npt.NDArray[Any]] = {
            INPUT_IDS: call.token_ids,
            POSITION_IDS: call.position_ids,
            "past_lens": call.past_lens,
            "subsequence_begins": call.subsequence_begins,
            "block_indices": call.block_indices,
            "block_indices_begins": call.block_indices_begins,
            "max_context_len": np.array(call.max_context_tokens, dtype=np.int32),
            # Without AVX-512, kernels add up a single row in another order than several.
            SCORED_ROWS: np.resize(call.scored_rows, max(call.scored_rows.size, _FEWEST_ROWS)),
        }
        try:
            for name, array in arrays.items():
                request.set_tensor(name, self._tensor(array, shared_memory=True))
            # `arrays` holds what the request has addresses of until it is done.
            request.infer(None, share_inputs=True, share_outputs=True)
            rows = request.get_tensor(LOGITS).data[: call.scored_rows.size, 0]
            return np.array(rows, dtype=np.float32)
        except RuntimeError as error:
            raise DeviceError(
                f"Device {self._device!r} stopped at {call.token_ids.size:,} tokens of "
                f"{call.past_lens.size:,} sequences: {first_line(error)}.",
                "ask again; if it stops again, load the package without batching and run "
                "`qwen-edge doctor`.",
                device=self._device,
                engine_message=str(error),
            ) from error

    def close(self) -> None:
        """Let go of the engine and of the blocks; calling it twice is harmless."""
        self._request = None
        self._compiled = None
        for layer in self._layers:
            layer.bytes = np.zeros((0, layer.bytes_per_block), dtype=np.uint8)
