"""Repacking stored weights for ONNX Runtime: the same integers and scales, in its layouts.

The compressor's numbers are not touched. What changes is where they lie: signed int4 become
unsigned by flipping one bit, a scale per row is repeated for every block of the row, and
float16 scales become float32. Everything is appended to one data file in blocks of rows; the
graph refers to it by offset, so a model of any size is written in the memory of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qwen_edge.export.weight_store import StoredTensor, WeightStore
from qwen_edge.runtime.files.writing import open_for_writing

_BLOCK_VALUES = 1 << 24  # weights in memory at once
# Large tensors begin where Windows can map them; ONNX asks for a page, Windows for 64 KiB.
# Source: onnx.proto, `external_data`; Win32 SYSTEM_INFO.dwAllocationGranularity.
_LARGE_BYTES, _LARGE_ALIGNMENT, _ALIGNMENT = 1 << 20, 1 << 16, 64
# MLAS has kernels for these block sizes; a row that shares one scale is cut into blocks of the
# largest that divides it. 8-bit decoding on 2 cores: 25.8 GB/s at 128, 22.4 at 256 (docs/LOG.md).
_ROW_BLOCKS = (128, 64, 32, 16)
# Larger groups are cut into such blocks: the most that ONNX Runtime's kernels know (1.31).
MAX_BLOCK = 256
_DTYPES = {
    np.dtype(np.float32): ir.DataType.FLOAT,
    np.dtype(np.float16): ir.DataType.FLOAT16,
    np.dtype(np.uint8): ir.DataType.UINT8,
    np.dtype(np.int8): ir.DataType.INT8,
}

Rows = Callable[[int, int], npt.NDArray[Any]]
"""Called with (start, stop); returns that block of rows."""


@dataclass(frozen=True)
class BlockWeights:
    """One matrix as MatMulNBits takes it.

    Args:
        bits: 4 or 8.
        block_size: Weights that share a scale.
        values: uint8 [out, blocks, block_size * bits / 8]; lower half first for 4 bits.
        scales: float32 [out, blocks].
        zero_points: For asymmetric weights: uint8 [out, blocks], of 4 bits two in a byte, lower
            half first. None means the middle, 8 or 128.
    """

    bits: int
    block_size: int
    values: ir.ExternalTensor
    scales: ir.ExternalTensor
    zero_points: ir.ExternalTensor | None


class OnnxWeights:
    """Writes the tensors of a store into an external-data file, each once.

    Args:
        store: Frozen; stays open until the file is written.
        path: The data file; created. Its name is what the graph will say.

    State:
        The file grows with every tensor asked for the first time.
    """

    def __init__(self, store: WeightStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._file: BinaryIO | None = open_for_writing(path)
        self._done: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End writing. Calling it twice is harmless."""
        # Given up first: a file whose closing Ctrl-C has interrupted cannot be closed again.
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def stored(self, name: str) -> StoredTensor:
        """Return what the compressor made of a matrix."""
        return self._store.tensors[name]

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return a matrix as it is stored: views of "values", "scale" and "zero_point"."""
        stored = self._store.tensors[name]
        pieces = {"values": stored.values, "scale": stored.scale, "zero_point": stored.zero_point}
        return {key: self._store.array(piece) for key, piece in pieces.items() if piece}

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or bias, float32 [size]; these are kept in the graph itself."""
        return self._store.vectors[name]

    def blocks(self, name: str) -> BlockWeights:
        """Return an int4 or int8 matrix in MatMulNBits' layout."""
        if name not in self._done:
            self._done[name] = self._write_blocks(self._store.tensors[name])
        result: BlockWeights = self._done[name]
        return result

    def table(self, name: str) -> tuple[ir.ExternalTensor, BlockWeights]:
        """Return an int8 matrix to look rows up in, uint8 [out, in], and its scales.

        The bytes are those of `blocks` where the blocks fill the rows exactly; a tied head
        then costs nothing.
        """
        rows, width = self._store.tensors[name].shape
        blocks = self.blocks(name)
        if blocks.values.shape[1] * blocks.values.shape[2] == width:
            return self.alias(f"{name}_table", blocks.values, (rows, width)), blocks
        stored = self._store.tensors[name]
        values = self._store.array(stored.values)
        table = self.append(
            f"{name}_table",
            (rows, width),
            np.uint8,
            lambda start, stop: _block_values(values, stored, (start, stop), width),
        )
        return table, blocks

    def half(self, name: str) -> ir.ExternalTensor:
        """Return an uncompressed matrix, float16 [out, in]."""
        if name not in self._done:
            values = self._store.array(self._store.tensors[name].values)
            self._done[name] = self.append(
                name, values.shape, values.dtype, lambda start, stop: values[start:stop]
            )
        result: ir.ExternalTensor = self._done[name]
        return result

    def append(
        self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, rows: Rows
    ) -> ir.ExternalTensor:
        """Append an array to the file, block by block.

        Args:
            name: Of the initializer.
            shape: Its shape; blocks run along the first axis.
            dtype: float32, float16, int8 or uint8.
            rows: Called for one block of rows after the other.
        """
        assert self._file is not None, "the data file is closed"
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        alignment = _LARGE_ALIGNMENT if size >= _LARGE_BYTES else _ALIGNMENT
        self._file.write(b"\0" * (-self._file.tell() % alignment))
        offset = self._file.tell()
        step = max(1, _BLOCK_VALUES // max(1, int(np.prod(shape[1:]))))
        for start in range(0, shape[0], step):
            block = rows(start, min(start + step, shape[0]))
            self._file.write(np.ascontiguousarray(block, dtype=dtype).data.cast("B"))
        assert self._file.tell() - offset == size, name
        return self._external(name, offset, size, _DTYPES[dtype], shape)

    def alias(
        self,
        name: str,
        tensor: ir.ExternalTensor,
        shape: tuple[int, ...],
        dtype: ir.DataType | None = None,
    ) -> ir.ExternalTensor:
        """Return another initializer over the same bytes of the file.

        Args:
            name: Of the new initializer.
            tensor: Whose bytes they are.
            shape: The new initializer's.
            dtype: None keeps the tensor's.
        """
        assert tensor.offset is not None and tensor.length is not None
        return self._external(name, tensor.offset, tensor.length, dtype or tensor.dtype, shape)

    def _external(
        self, name: str, offset: int, size: int, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            self._path.name,
            offset,
            size,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self._path.parent,
        )

    def _write_blocks(self, stored: StoredTensor) -> BlockWeights:
        name, (rows, width) = stored.name, stored.shape
        bits = 4 if stored.format == "int4" else 8
        grouped = min(stored.group_size, MAX_BLOCK)
        block = grouped if stored.group_size > 0 else _row_block(width)
        num_blocks = -(-width // block)
        assert stored.scale is not None
        # [out, groups]: the scale of a group, or of a row, counts for all its blocks.
        scales = self._store.array(stored.scale).reshape(rows, -1)
        num_repeats = num_blocks // scales.shape[1]
        zero = None if stored.zero_point is None else self._store.array(stored.zero_point)
        zero_points = None
        if zero is not None:
            zero_points = self.append(
                f"{name}_zero_points",
                (rows, num_blocks if bits == 8 else -(-num_blocks // 2)),
                np.uint8,
                lambda start, stop: _zero_points(zero[start:stop], num_repeats, bits),
            )
        return BlockWeights(
            bits=bits,
            block_size=block,
            values=self.append(
                f"{name}_quantized",
                (rows, num_blocks, block * bits // 8),
                np.uint8,
                lambda start, stop: _block_values(
                    self._store.array(stored.values), stored, (start, stop), num_blocks * block
                ),
            ),
            scales=self.append(
                f"{name}_scales",
                (rows, num_blocks),
                np.float32,
                lambda start, stop: np.repeat(
                    scales[start:stop].astype(np.float32), num_repeats, axis=1
                ),
            ),
            zero_points=zero_points,
        )


def _zero_points(zero: npt.NDArray[np.uint8], num_repeats: int, bits: int) -> npt.NDArray[np.uint8]:
    """Return one zero point per block; of 4 bits two in a byte, each row begins a new one."""
    by_block = np.repeat(zero.reshape(zero.shape[0], -1), num_repeats, axis=1)
    if bits == 8:
        return by_block
    by_block = np.pad(by_block, ((0, 0), (0, by_block.shape[1] % 2)))
    high: npt.NDArray[np.uint8] = np.left_shift(by_block[:, 1::2], 4, dtype=np.uint8)
    return by_block[:, 0::2] | high


def _row_block(width: int) -> int:
    """Return into what blocks a row with one scale is cut."""
    return next((block for block in _ROW_BLOCKS if width % block == 0), _ROW_BLOCKS[-1])


def _block_values(
    values: npt.NDArray[Any], stored: StoredTensor, rows: tuple[int, int], padded_width: int
) -> npt.NDArray[np.uint8]:
    """Return rows as unsigned numbers, filled up to whole blocks; uint8 [rows, bytes]."""
    start, stop = rows
    total_rows, width = stored.shape
    flat = values.reshape(total_rows, -1)[start:stop].view(np.uint8)  # [rows, bytes]
    if stored.zero_point is not None:
        pass  # unsigned already
    elif stored.format == "int4":
        flat = flat ^ np.uint8(0x88)  # -8 … 7 become 0 … 15: plus 8 is a flip of the high bit
    else:
        flat = flat ^ np.uint8(0x80)
    missing = padded_width - width
    if missing:
        # Whatever stands there meets no input; the middle is what a reader expects.
        middle = 0x88 if stored.format == "int4" else 0x80
        missing = missing // 2 if stored.format == "int4" else missing
        flat = np.pad(flat, ((0, 0), (0, missing)), constant_values=middle)
    return flat
