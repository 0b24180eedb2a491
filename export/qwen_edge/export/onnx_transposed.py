"""Stored weights as standard ONNX wants them: [in, out], so that a MatMul takes them as they are.

`DequantizeLinear` has the compressor's own numbers: 4 bits in groups along the inputs, 8 bits
with one scale per row. Only their order changes. A matrix is turned in blocks of inputs, so
that the memory is that of a block. `onnx_weights.py` has ONNX Runtime's own layouts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qwen_edge.export.onnx_weights import MAX_BLOCK, OnnxWeights
from qwen_edge.export.weight_store import StoredTensor

# Rows turned at once, so that both sides stay in the processor's cache: 25 million int4 take
# 0.05 s instead of 0.12, a head of 389 million int8 0.9 s instead of 2.3.
_TILE_ROWS = 256


@dataclass(frozen=True)
class TransposedMatrix:
    """One matrix in the order of a MatMul's second operand.

    Args:
        block_size: Inputs that share a scale; -1 for all of an output.
        values: int4, uint4, int8, uint8 or float16 [in, out].
        scales: float32 [groups, out], or [out] where an output has one; None for float16.
        zero_points: For asymmetric weights, in the type of `values` and the shape of `scales`.
    """

    block_size: int
    values: ir.ExternalTensor
    scales: ir.ExternalTensor | None
    zero_points: ir.ExternalTensor | None


@dataclass(frozen=True)
class Table:
    """One matrix to look rows up in.

    Args:
        values: int8, uint8 or float16, [rows, width], or [width, rows] if `is_transposed`.
        scales: float32 [rows, 1]; None for float16.
        zero_points: uint8 [rows, 1] for asymmetric 8 bits, otherwise None.
        is_transposed: A row of the matrix is a column of `values`.
    """

    values: ir.ExternalTensor
    scales: ir.ExternalTensor | None
    zero_points: ir.ExternalTensor | None
    is_transposed: bool


class TransposedWeights:
    """Writes matrices as [in, out], each once.

    Args:
        weights: Where they come from, and the file they go to.
    """

    def __init__(self, weights: OnnxWeights) -> None:
        self._weights = weights
        self._done: dict[str, TransposedMatrix] = {}

    def matrix(self, name: str) -> TransposedMatrix:
        """Return a matrix [in, out] with its scales."""
        if name not in self._done:
            stored = self._weights.stored(name)
            arrays = self._weights.arrays(name)
            scales, zero_points = self._numbers(stored, arrays)
            self._done[name] = TransposedMatrix(
                block_size=min(stored.group_size, MAX_BLOCK),
                values=self._values(stored, arrays["values"]),
                scales=scales,
                zero_points=zero_points,
            )
        return self._done[name]

    def table(self, name: str, *, is_head: bool) -> Table:
        """Return an embedding.

        The head's bytes serve a tied one: a second name over them, for ONNX Runtime does not
        fuse a matrix that two operators read. Of 151,936 rows of 2,560 that saves 389 MB of
        file and as much memory, and costs 19 ms at 512 tokens, 65 ms at 2,048, nothing that
        shows at one (ONNX Runtime 1.31, 2 cores).

        Args:
            name: The embedding's name.
            is_head: It also makes the logits.
        """
        stored = self._weights.stored(name)
        rows, width = stored.shape
        arrays = self._weights.arrays(name)
        if is_head:
            matrix = self.matrix(name)
            values = self._weights.alias(f"{name}_table", matrix.values, (width, rows))
            scales, zero_points = matrix.scales, matrix.zero_points
        else:
            array = arrays["values"]
            values = self._weights.append(
                f"{name}_table", array.shape, array.dtype, lambda start, stop: array[start:stop]
            )
            scales, zero_points = self._numbers(stored, arrays)
        return Table(
            values=values,
            scales=self._column(f"{name}_row_scales", scales, rows),
            zero_points=self._column(f"{name}_row_zero_points", zero_points, rows),
            is_transposed=is_head,
        )

    def _column(
        self, name: str, tensor: ir.ExternalTensor | None, rows: int
    ) -> ir.ExternalTensor | None:
        """Return a tensor [rows] as [rows, 1], the same bytes."""
        return None if tensor is None else self._weights.alias(name, tensor, (rows, 1))

    def _values(self, stored: StoredTensor, array: npt.NDArray[Any]) -> ir.ExternalTensor:
        name, (rows, width) = stored.name, stored.shape
        if stored.format != "int4":
            return self._weights.append(
                f"{name}_values",
                (width, rows),
                array.dtype,
                lambda start, stop: _turned(array[:, start:stop]),
            )
        packed = array.reshape(rows, -1).view(np.uint8)  # [out, in / 2]
        pairs = self._weights.append(
            f"{name}_values",
            (width // 2, rows),
            np.uint8,
            lambda start, stop: transpose_int4(packed[:, start:stop]),
        )
        kind = ir.DataType.INT4 if stored.zero_point is None else ir.DataType.UINT4
        return self._weights.alias(pairs.name, pairs, (width, rows), kind)

    def _numbers(
        self, stored: StoredTensor, arrays: dict[str, npt.NDArray[Any]]
    ) -> tuple[ir.ExternalTensor | None, ir.ExternalTensor | None]:
        """Return scales and zero points."""
        if "scale" not in arrays:
            return None, None
        name, rows = stored.name, stored.shape[0]
        by_output = arrays["scale"].reshape(rows, -1).astype(np.float32)  # [out, groups]
        num_repeats = max(1, stored.group_size // MAX_BLOCK)
        scale: npt.NDArray[Any] = np.repeat(by_output.T, num_repeats, axis=0)
        if stored.group_size == -1:
            scale = scale.reshape(rows)
        scales = self._weights.append(
            f"{name}_scales", scale.shape, np.float32, lambda start, stop: scale[start:stop]
        )
        if "zero_point" not in arrays:
            return scales, None
        zero = np.repeat(arrays["zero_point"].reshape(rows, -1).T, num_repeats, axis=0).reshape(-1)
        if stored.format == "int4":
            zero = np.pad(zero, (0, zero.size % 2))
            zero = zero[0::2] | zero[1::2] << 4
        zero_points = self._weights.append(
            f"{name}_zero_points", zero.shape, np.uint8, lambda start, stop: zero[start:stop]
        )
        if stored.format == "int4":
            zero_points = self._weights.alias(
                zero_points.name, zero_points, scale.shape, ir.DataType.UINT4
            )
        return scales, zero_points


def transpose_int4(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Turn int4, two in a byte with the lower half first.

    Args:
        packed: uint8 [out, pairs]; the two of a byte are neighbours along the inputs.

    Returns:
        uint8 [pairs, out]: the int4 [2 * pairs, out] in row-major order, neighbours along the
        outputs in a byte. A row of the result is two rows of int4.
    """
    turned = _turned(packed)  # [pairs, out]
    halves = np.stack([turned & 15, turned >> 4], axis=1).reshape(len(turned), -1)
    packed_again: npt.NDArray[np.uint8] = halves[:, 0::2] | (halves[:, 1::2] << 4)
    return packed_again


def _turned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a matrix with its axes exchanged, copied."""
    turned = np.empty(array.shape[::-1], array.dtype)
    for start in range(0, len(array), _TILE_ROWS):
        stop = start + _TILE_ROWS
        turned[:, start:stop] = array[start:stop].T
    return turned
