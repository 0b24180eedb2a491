"""Weight compression by one recipe: which matrix gets which format, and what it cost.

Goes through a checkpoint one decoder layer at a time and puts every tensor into the
weight store, so that the memory needed is that of one block of rows whatever the size of
the model. Data-free AWQ is folded into the weights here. `quantise.py` has the
arithmetic, `weight_store.py` keeps the results.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import CheckpointError
from qwen_edge.export.checkpoint import Checkpoint, widen
from qwen_edge.export.decoder import EMBEDDING_NAME, FINAL_NORM_NAME, HEAD_NAME, DecoderSpec
from qwen_edge.export.quantise import Mode, mean_column_magnitude, quantise
from qwen_edge.export.weight_store import Format, WeightStore
from qwen_edge.profiles.recipe import Recipe

_BLOCK_VALUES = 1 << 25  # weights in memory at once: 128 MB as float32
_SAMPLED_ROWS = 32  # rows per matrix behind the reported error; all of them would cost 20 s
_FALLBACK_GROUPS = (64, 32)  # group sizes tried when the recipe's does not divide a width
_FLOAT16_MAX = 65_504.0
_EMBEDDINGS = frozenset({EMBEDDING_NAME, HEAD_NAME})

Vector = npt.NDArray[np.float32]
Parts = dict[str, list[npt.NDArray[Any]]]


@dataclass(frozen=True)
class TensorReport:
    """What became of one weight matrix.

    Args:
        name: Tensor name.
        format: "fp16", "int8" or "int4".
        num_values: Weights in it.
        width: Inputs, the axis that groups run along.
        group_size: Group size used; -1 for a whole row.
        relative_rms_error: RMS of the change over the RMS of the weights, on
            `_SAMPLED_ROWS` evenly spaced rows, AWQ's factors undone.
        is_fallback: The recipe's group size did not divide the width; for an odd width, which
            int4 cannot have, the format is int8.
    """

    name: str
    format: Format
    num_values: int
    width: int
    group_size: int
    relative_rms_error: float
    is_fallback: bool


@dataclass(frozen=True)
class _Matrix:
    """One matrix as stored in the checkpoint, with the factors AWQ puts on it."""

    name: str
    array: npt.NDArray[Any]  # [out, in]
    dtype: str
    row_factors: Vector | None = None  # [out]
    column_factors: Vector | None = None  # [in]


class Compressor:
    """Turns a checkpoint's tensors into stored tensors, by one recipe.

    Args:
        checkpoint: Checked against `spec` already.
        spec: The decoder.
        recipe: Formats, group size, AWQ.
        store: Receives every tensor.

    State:
        `reports` grows by one entry per matrix.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: DecoderSpec, recipe: Recipe, store: WeightStore
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._recipe = recipe
        self._store = store
        self.reports: list[TensorReport] = []

    def compress_embeddings(self) -> None:
        """Store the embedding, the head where it is a matrix of its own, and the last norm.

        Raises:
            CheckpointError: A value is NaN, infinite, or too large for float16.
        """
        self._compress(self._read(EMBEDDING_NAME), self._recipe.embedding)
        if not self._spec.is_tied:
            self._compress(self._read(HEAD_NAME), self._recipe.head)
        self._keep_vector(FINAL_NORM_NAME)

    def compress_layer(self, layer_index: int) -> None:
        """Store one layer's seven matrices and its vectors.

        Args:
            layer_index: In [0, num_layers).

        Raises:
            CheckpointError: A value is NaN, infinite, or too large for float16.
        """
        names = self._spec.linear_shapes(layer_index)
        for name in self._spec.layer_shapes(layer_index):
            if name not in names:
                self._keep_vector(name)
        matrices = {name: self._read(name) for name in names}
        if self._recipe.awq:
            self._balance(layer_index, matrices)
        for matrix in matrices.values():
            self._compress(matrix, self._recipe.weights)

    def _read(self, name: str) -> _Matrix:
        self._checkpoint.check_finite(name)
        return _Matrix(name, self._checkpoint.raw(name), self._checkpoint.entries[name].dtype)

    def _keep_vector(self, name: str) -> None:
        self._checkpoint.check_finite(name)
        self._store.add_vector(name, self._checkpoint.float32(name))

    def _balance(self, layer_index: int, matrices: dict[str, _Matrix]) -> None:
        """Put data-free AWQ's factors on one layer's MLP.

        Each input channel of `down_proj` is divided by its mean magnitude, so that no
        channel of a group is rounded away beside a larger one; `up_proj` is multiplied by
        the same figures, so that the product is what it was. No node is added.

        Source:
            NNCF 3.4.0, weight_compression/awq.py, data-free step on the pattern
            MatMul → Multiply → MatMul, the only one of its patterns a Qwen3 layer has.
            NNCF rounds the scaled weights to the checkpoint's dtype; here they stay
            float32 until they are quantised.
        """
        prefix = f"model.layers.{layer_index}.mlp"
        up, down = matrices[f"{prefix}.up_proj.weight"], matrices[f"{prefix}.down_proj.weight"]
        magnitude = mean_column_magnitude(down.array, down.dtype)
        magnitude = np.maximum(magnitude, np.finfo(np.float32).eps)
        inverse = (1 / magnitude).astype(np.float32)
        matrices[down.name] = _Matrix(down.name, down.array, down.dtype, column_factors=inverse)
        matrices[up.name] = _Matrix(up.name, up.array, up.dtype, row_factors=magnitude)
        bias = f"{prefix}.up_proj.bias"
        if bias in self._store.vectors:
            self._store.add_vector(bias, self._store.vectors[bias] * magnitude)

    def _compress(self, matrix: _Matrix, fmt: Format) -> None:
        rows, width = matrix.array.shape
        if fmt == "int4" and width % 2:
            fmt = "int8"  # two int4 share a byte; no published model has such a width
        group_size = self._group_size(width) if fmt == "int4" else -1
        parts: Parts = {}
        step = max(1, _BLOCK_VALUES // width)
        for start in range(0, rows, step):
            block = slice(start, min(start + step, rows))
            for key, array in self._convert(matrix, block, fmt, group_size).items():
                parts.setdefault(key, []).append(array)
        self._store.add(matrix.name, fmt, (rows, width), group_size, parts)
        self._report(matrix, fmt, group_size, parts)

    def _group_size(self, width: int) -> int:
        wanted = self._recipe.group_size
        if wanted == -1 or width % wanted == 0:
            return wanted
        return next((g for g in _FALLBACK_GROUPS if g < wanted and width % g == 0), -1)

    def _convert(
        self, matrix: _Matrix, rows: slice, fmt: Format, group_size: int
    ) -> dict[str, npt.NDArray[Any]]:
        array = matrix.array[rows]
        if fmt == "fp16":
            return {"values": self._float16(matrix.name, widen(array, matrix.dtype))}
        done = quantise(
            array,
            matrix.dtype,
            self._mode(fmt),
            group_size,
            row_factors=None if matrix.row_factors is None else matrix.row_factors[rows],
            column_factors=matrix.column_factors,
        )
        if not np.isfinite(done.scale).all():
            raise CheckpointError(
                f"Tensor {matrix.name!r} holds values so large that their scale does not fit "
                f"float16 (more than {_FLOAT16_MAX:,.0f}).",
                "fetch the checkpoint again, or export an earlier step of the fine-tune",
                tensor=matrix.name,
            )
        parts: dict[str, npt.NDArray[Any]] = {"values": done.values, "scale": done.scale}
        if done.zero_point is not None:
            parts["zero_point"] = done.zero_point
        return parts

    def _mode(self, fmt: Format) -> Mode:
        if fmt == "int4":
            return "int4_sym"
        # Embedding and head beside int4 layers: asymmetric, NNCF's backup precision.
        is_symmetric = self._recipe.symmetric and self._recipe.weights == "int8"
        return "int8_sym" if is_symmetric else "int8_asym"

    def _float16(self, name: str, wide: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
        largest = max(float(wide.max()), -float(wide.min()))
        if largest > _FLOAT16_MAX:
            raise CheckpointError(
                f"Tensor {name!r} holds {largest:,.0f}, more than float16 can "
                f"({_FLOAT16_MAX:,.0f}).",
                "export with --recipe int8 or int4-awq, which scale each row",
                tensor=name,
            )
        return wide.astype(np.float16)

    def _report(self, matrix: _Matrix, fmt: Format, group_size: int, parts: Parts) -> None:
        rows, width = matrix.array.shape
        picked = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS)).astype(int))
        before = widen(matrix.array[picked], matrix.dtype)
        after = dequantise({k: _pick_rows(v, picked) for k, v in parts.items()}, fmt)
        if matrix.row_factors is not None:
            after /= matrix.row_factors[picked][:, None]
        if matrix.column_factors is not None:
            after /= matrix.column_factors
        power = float(np.square(before, dtype=np.float64).mean())
        error = float(np.square(after - before, dtype=np.float64).mean())
        is_int4_wanted = self._recipe.weights == "int4" and matrix.name not in _EMBEDDINGS
        self.reports.append(
            TensorReport(
                name=matrix.name,
                format=fmt,
                num_values=rows * width,
                width=width,
                group_size=group_size,
                relative_rms_error=(error / power) ** 0.5 if power else 0.0,
                is_fallback=is_int4_wanted
                and (fmt, group_size) != ("int4", self._recipe.group_size),
            )
        )


def dequantise(parts: Mapping[str, npt.NDArray[Any]], fmt: Format) -> npt.NDArray[np.float32]:
    """Return the float32 weights that stored values stand for.

    Args:
        parts: "values" [rows, …], "scale" and "zero_point" as `StoredTensor` describes.
        fmt: "fp16", "int8" or "int4".

    Returns:
        float32 [rows, in].
    """
    values = parts["values"]
    if fmt == "fp16":
        return values.astype(np.float32)
    rows = values.shape[0]
    if fmt == "int4":
        packed = values.reshape(rows, -1).view(np.uint8)
        halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1)
        numbers = (halves.astype(np.int8) ^ 8).astype(np.float32) - 8
    else:
        numbers = values.reshape(rows, -1).astype(np.float32)
    if "zero_point" in parts:
        numbers -= parts["zero_point"].reshape(rows, 1).astype(np.float32)
    scale = parts["scale"].astype(np.float32).reshape(rows, -1)
    groups = numbers.reshape(rows, scale.shape[1], -1)
    return (groups * scale[:, :, None]).reshape(rows, -1)


def _pick_rows(blocks: list[npt.NDArray[Any]], rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    starts = np.cumsum([0, *[block.shape[0] for block in blocks]])
    which = np.searchsorted(starts, rows, side="right") - 1
    return np.stack([blocks[b][row - starts[b]] for b, row in zip(which, rows, strict=True)])
