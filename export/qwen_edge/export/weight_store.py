"""Compressed weights between the compressor and the graph: on disk, mapped, never in memory.

Every finished tensor is appended to one spool file in the staging folder. The graph's
constants are views of that file, so a 4-billion-parameter model is assembled and saved in
a few hundred megabytes of private memory. The store also is the graph builder's
`WeightSource`: it hands out the subgraph that turns a stored tensor into float32.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.files.writing import open_for_writing, remove_file

_ALIGNMENT = 64  # bytes; a cache line, and what OpenVINO aligns its own constants to

Format = Literal["fp16", "int8", "int4", "nf4"]


@dataclass(frozen=True)
class _Piece:
    offset_bytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """One weight matrix as the graph will hold it.

    Args:
        name: Tensor name in the checkpoint.
        format: "fp16", "int8", "int4" or "nf4".
        shape: (out, in).
        group_size: Weights along `in` that share a scale; -1 for a whole row.
        values: Packed values: float16 [out, in], int8/uint8 [out, in], or two of 4 bits in a
            byte, lower half first, flat.
        scale: float16 [out, groups, 1], or [out, 1] per row; None for fp16.
        zero_point: uint8 in the shape of `scale`, one in a byte also for 4 bits, for
            asymmetric integers; otherwise None.
    """

    name: str
    format: Format
    shape: tuple[int, int]
    group_size: int
    values: _Piece
    scale: _Piece | None = None
    zero_point: _Piece | None = None


class WeightStore:
    """Appends tensors to a spool file, then serves them to the graph builder.

    Args:
        path: The spool file; created, and removed by `close`.

    State:
        `add` while writing; `freeze` once; then the `WeightSource` calls. The memory map
        must outlive every model built from it, so `close` comes after saving.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = open_for_writing(path)
        self._map: npt.NDArray[np.uint8] | None = None
        self._nodes: dict[str, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        self.vectors: dict[str, npt.NDArray[np.float32]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def add(
        self,
        name: str,
        fmt: Format,
        shape: tuple[int, int],
        group_size: int,
        parts: Mapping[str, list[npt.NDArray[Any]]],
    ) -> None:
        """Append one matrix.

        Args:
            name: Tensor name.
            fmt: How `values` are stored.
            shape: (out, in).
            group_size: -1 for a whole row.
            parts: "values" and, where the format has them, "scale" and "zero_point"; each
                a list of row blocks in order.
        """
        values = self._append(parts["values"])
        scale = self._append(parts["scale"]) if "scale" in parts else None
        zero = self._append(parts["zero_point"]) if "zero_point" in parts else None
        self.tensors[name] = StoredTensor(name, fmt, shape, group_size, values, scale, zero)

    def add_vector(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Keep a norm weight or bias, float32 [width]. These stay in memory."""
        self.vectors[name] = values

    def _append(self, blocks: list[npt.NDArray[Any]]) -> _Piece:
        assert self._file is not None
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        for block in blocks:
            self._file.write(np.ascontiguousarray(block).data.cast("B"))
        rows = sum(block.shape[0] for block in blocks)
        return _Piece(offset, blocks[0].dtype.str, (rows, *blocks[0].shape[1:]))

    def freeze(self) -> None:
        """End writing and map the file."""
        self._end_writing()
        self._map = np.memmap(self._path, dtype=np.uint8, mode="r")

    def _end_writing(self) -> None:
        # Given up first: a file whose closing Ctrl-C has interrupted cannot be closed again.
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def close(self) -> None:
        """Drop the map and remove the spool file. Calling it twice is harmless."""
        self._end_writing()
        self._nodes.clear()
        self._map = None
        # Windows keeps a mapped file until the last view is gone; the staging folder that holds
        # it is removed as a whole.
        with contextlib.suppress(OSError):
            remove_file(self._path)

    def array(self, piece: _Piece) -> npt.NDArray[Any]:
        """Return one stored array as a read-only view of the map."""
        assert self._map is not None, "freeze the store first"
        dtype = np.dtype(piece.dtype)
        size = int(np.prod(piece.shape)) * dtype.itemsize
        view = self._map[piece.offset_bytes : piece.offset_bytes + size]
        return view.view(dtype).reshape(piece.shape)

    # The graph builder's side (openvino_graph.WeightSource).

    def linear(self, name: str) -> Any:
        """Return the float32 [out, in] output of a matrix's decompression subgraph."""
        if name not in self._nodes:
            self._nodes[name] = self._build(self.tensors[name])
        return self._nodes[name]

    def embedding(self, name: str) -> Any:
        """Return the float32 [vocab, hidden] output; shared with a tied head."""
        return self.linear(name)

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or bias, float32 [width]."""
        return self.vectors[name]

    def activation_scale(self, name: str) -> None:
        """Return None: scales are folded into the weights before they get here."""
        del name

    def _build(self, stored: StoredTensor) -> Any:
        """Build Constant → Convert [→ Subtract] → Multiply [→ Reshape] → Convert.

        Source:
            The shape of subgraph that NNCF 3.4.0 writes and every OpenVINO plugin fuses.
        """
        ov = import_openvino()
        ops, name = ov.opset15, stored.name
        values = self._constant(stored.values, _ov_type(ov, stored), name, _ov_shape(stored))
        if stored.format == "fp16":
            return ops.convert(values, ov.Type.f32, name=f"{name}/convert").output(0)
        assert stored.scale is not None
        wide = ops.convert(values, ov.Type.f16, name=f"{name}/to_f16")
        if stored.zero_point is not None:
            zero = self._zero_points(stored, stored.zero_point)
            zero_f16 = ops.convert(zero, ov.Type.f16, name=f"{name}/zero_point/to_f16")
            wide = ops.subtract(wide, zero_f16, name=f"{name}/zero_point/subtract")
        scale = self._constant(stored.scale, ov.Type.f16, f"{name}/scale")
        scaled = ops.multiply(wide, scale, name=f"{name}/fq_weights_1")
        if stored.group_size != -1:
            target = ops.constant(np.array(stored.shape, np.int64), name=f"{name}/shape")
            scaled = ops.reshape(scaled, target, special_zero=False, name=f"{name}/reshape")
        return ops.convert(scaled, ov.Type.f32, name=f"{name}/convert").output(0)

    def _zero_points(self, stored: StoredTensor, piece: _Piece) -> Any:
        """Return the constant of zero points, which has the type of the values."""
        ov, name = import_openvino(), f"{stored.name}/zero_point"
        if stored.format != "int4":
            return self._constant(piece, ov.Type.u8, name)
        numbers = self.array(piece).reshape(-1)
        numbers = np.pad(numbers, (0, numbers.size % 2))
        packed = numbers[0::2] | numbers[1::2] << 4
        return self._wrap(packed, ov.Type.u4, name, piece.shape)

    def _constant(
        self, piece: _Piece, ov_type: Any, name: str, shape: tuple[int, ...] | None = None
    ) -> Any:
        return self._wrap(self.array(piece).reshape(-1), ov_type, name, shape or piece.shape)

    def _wrap(self, view: npt.NDArray[Any], ov_type: Any, name: str, shape: tuple[int, ...]) -> Any:
        ov = import_openvino()
        tensor = ov.Tensor(view, ov.Shape(list(shape)), ov_type)
        # The tensor borrows the view's memory; both are kept until the store is closed.
        self._nodes[f"{name}/tensor"] = (view, tensor)
        constant = ov.op.Constant(tensor, True)
        constant.set_friendly_name(name)
        return constant


def _ov_type(ov: Any, stored: StoredTensor) -> Any:
    if stored.format == "nf4":
        return ov.Type.nf4
    if stored.format == "int4":
        return ov.Type.i4 if stored.zero_point is None else ov.Type.u4
    if stored.format == "fp16":
        return ov.Type.f16
    return ov.Type.i8 if stored.zero_point is None else ov.Type.u8


def _ov_shape(stored: StoredTensor) -> tuple[int, ...]:
    rows, width = stored.shape
    if stored.group_size == -1:
        return rows, width
    return rows, width // stored.group_size, stored.group_size
