"""Weight compression by one recipe: which matrix gets which format, and what it cost.

Goes through a checkpoint one decoder layer at a time and puts every tensor into the
weight store, so that the memory needed is that of one block of rows whatever the size of
the model. AWQ's factors of `balance.py` are folded into the weights here; `quantise.py` has
the arithmetic, `weight_store.py` keeps the results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import CheckpointError
from qwen_edge.export.balance import Balance, balance_by_weights
from qwen_edge.export.checkpoint import Checkpoint, widen
from qwen_edge.export.decoder import EMBEDDING_NAME, FINAL_NORM_NAME, HEAD_NAME, DecoderSpec
from qwen_edge.export.quantise import NF4_LEVELS, Mode, Quantised, mean_column_magnitude, quantise
from qwen_edge.export.weight_store import Format
from qwen_edge.profiles.matrix_format import FOUR_BITS, MatrixFormat
from qwen_edge.profiles.recipe import Recipe

_BLOCK_VALUES = 1 << 25  # weights in memory at once: 128 MB as float32
_SAMPLED_ROWS = 32  # rows per matrix behind the reported error; all of them would cost 20 s
_FALLBACK_GROUPS = (64, 32)  # group sizes tried when the recipe's does not divide a width
_FLOAT16_MAX = 65_504.0

Vector = npt.NDArray[np.float32]
Parts = dict[str, list[npt.NDArray[Any]]]


@dataclass(frozen=True)
class TensorReport:
    """What became of one weight matrix.

    Args:
        name: Tensor name.
        format: "fp16", "int8", "int4" or "nf4".
        num_values: Weights in it.
        width: Inputs, the axis that groups run along.
        group_size: Group size used; -1 for a whole row.
        relative_rms_error: RMS of the change over the RMS of the weights, on
            `_SAMPLED_ROWS` evenly spaced rows, AWQ's factors undone.
        is_fallback: The recipe's group size did not divide the width; for an odd width, which
            4 bits cannot have, the format is int8.
    """

    name: str
    format: Format
    num_values: int
    width: int
    group_size: int
    relative_rms_error: float
    is_fallback: bool


@dataclass(frozen=True)
class SourceMatrix:
    """One matrix as stored in the checkpoint, with the factors AWQ puts on it."""

    name: str
    array: npt.NDArray[Any]  # [out, in]
    dtype: str
    row_factors: Vector | None = None  # [out]
    column_factors: Vector | None = None  # [in]


class TensorStore(Protocol):
    """Where finished tensors go: the spool file, or one layer's record."""

    vectors: dict[str, npt.NDArray[np.float32]]

    def add(
        self,
        name: str,
        fmt: Format,
        shape: tuple[int, int],
        group_size: int,
        parts: Mapping[str, list[npt.NDArray[Any]]],
    ) -> None:
        """Append one matrix; see `WeightStore.add`."""

    def add_vector(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Keep a norm weight or bias, float32 [width]."""


class Compressor:
    """Turns a checkpoint's tensors into stored tensors, by one recipe.

    Args:
        checkpoint: Checked against `spec` already.
        spec: The decoder.
        recipe: Formats, group sizes, AWQ; its exceptions for single matrices are heeded.
        store: Receives every tensor.

    State:
        `reports` grows by one entry per matrix.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: DecoderSpec, recipe: Recipe, store: TensorStore
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
        self._compress(self._read(EMBEDDING_NAME))
        if not self._spec.is_tied:
            self._compress(self._read(HEAD_NAME))
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
            self._compress(matrix)

    def _read(self, name: str) -> SourceMatrix:
        self._checkpoint.check_finite(name)
        return SourceMatrix(name, self._checkpoint.raw(name), self._checkpoint.entries[name].dtype)

    def _keep_vector(self, name: str) -> None:
        self._checkpoint.check_finite(name)
        self._store.add_vector(name, self._checkpoint.float32(name))

    def _balance(self, layer_index: int, matrices: dict[str, SourceMatrix]) -> None:
        """Put AWQ's factors on one layer, chosen by its weights alone."""
        is_coarse = {name: self._format(name).weights in FOUR_BITS for name in matrices}

        def magnitude(name: str, row_factors: Vector | None) -> Vector:
            matrix = matrices[name]
            return mean_column_magnitude(matrix.array, matrix.dtype, row_factors)

        self._apply(balance_by_weights(self._spec, layer_index, is_coarse, magnitude), matrices)

    def _apply(self, balance: Balance, matrices: dict[str, SourceMatrix]) -> None:
        """Put factors on matrices, norms and biases."""
        for name, factors in balance.columns.items():
            matrices[name] = replace(matrices[name], column_factors=factors)
        for name, factors in (balance.rows | balance.norms).items():
            if name in matrices:
                matrices[name] = replace(matrices[name], row_factors=factors)
            else:
                self._store.add_vector(name, self._store.vectors[name] * factors)

    def _format(self, name: str) -> MatrixFormat:
        """Return how the recipe wants a matrix stored."""
        return self._recipe.matrix_format(name)

    def _compress(self, matrix: SourceMatrix) -> None:
        rows, width = matrix.array.shape
        wanted = self._format(matrix.name)
        found = fit_format(wanted, width)
        parts = self._convert(matrix, found)
        self._store.add(matrix.name, found.weights, (rows, width), found.group_size, parts)
        self._report(matrix, wanted, found, parts)

    def _convert(self, matrix: SourceMatrix, found: MatrixFormat) -> Parts:
        """Return a matrix as it will be stored, in blocks of rows."""
        rows, width = matrix.array.shape
        parts: Parts = {}
        step = max(1, _BLOCK_VALUES // width)
        for start in range(0, rows, step):
            block = slice(start, min(start + step, rows))
            for key, array in self._convert_rows(matrix, block, found).items():
                parts.setdefault(key, []).append(array)
        return parts

    def _convert_rows(
        self, matrix: SourceMatrix, rows: slice, found: MatrixFormat
    ) -> dict[str, npt.NDArray[Any]]:
        array = matrix.array[rows]
        row_factors = None if matrix.row_factors is None else matrix.row_factors[rows]
        if found.weights == "fp16":
            wide = widen(array, matrix.dtype)
            if row_factors is not None:  # an `up_proj` that a recipe's exception keeps whole
                wide *= row_factors[:, None]
            if matrix.column_factors is not None:
                wide *= matrix.column_factors
            return {"values": self._float16(matrix.name, wide)}
        done = quantise(
            array,
            matrix.dtype,
            mode_of(found),
            found.group_size,
            row_factors=row_factors,
            column_factors=matrix.column_factors,
        )
        return stored_parts(matrix, done)

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

    def _report(
        self, matrix: SourceMatrix, wanted: MatrixFormat, found: MatrixFormat, parts: Parts
    ) -> None:
        rows, width = matrix.array.shape
        picked = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS)).astype(int))
        before = widen(matrix.array[picked], matrix.dtype)
        after = dequantise({k: _pick_rows(v, picked) for k, v in parts.items()}, found.weights)
        if matrix.row_factors is not None:
            after /= matrix.row_factors[picked][:, None]
        if matrix.column_factors is not None:
            after /= matrix.column_factors
        power = float(np.square(before, dtype=np.float64).mean())
        error = float(np.square(after - before, dtype=np.float64).mean())
        self.reports.append(
            TensorReport(
                name=matrix.name,
                format=found.weights,
                num_values=rows * width,
                width=width,
                group_size=found.group_size,
                relative_rms_error=(error / power) ** 0.5 if power else 0.0,
                is_fallback=found != wanted,
            )
        )


def stored_parts(matrix: SourceMatrix, done: Quantised) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of quantised weights by the names they are stored under.

    Args:
        matrix: Where they come from.
        done: All of it, or some rows.

    Raises:
        CheckpointError: A scale does not fit float16.
    """
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


def fit_format(wanted: MatrixFormat, width: int) -> MatrixFormat:
    """Return the format that a matrix of this width can have, nearest to the wanted one."""
    if wanted.weights not in FOUR_BITS:
        return wanted
    if width % 2:  # two values share a byte; no published model has such a width
        return MatrixFormat("int8", symmetric=False, group_size=-1)
    size = wanted.group_size
    if size == -1 or width % size == 0:
        return wanted
    smaller = (g for g in _FALLBACK_GROUPS if g < size and width % g == 0)
    return replace(wanted, group_size=next(smaller, -1))


def mode_of(found: MatrixFormat) -> Mode:
    """Return how the values of a quantised format are rounded."""
    if found.weights == "nf4":
        return "nf4"
    if found.weights == "int4":
        return "int4_sym" if found.symmetric else "int4_asym"
    return "int8_sym" if found.symmetric else "int8_asym"


def dequantise(parts: Mapping[str, npt.NDArray[Any]], fmt: Format) -> npt.NDArray[np.float32]:
    """Return the float32 weights that stored values stand for.

    Args:
        parts: "values" [rows, …], "scale" and "zero_point" as `StoredTensor` describes.
        fmt: "fp16", "int8", "int4" or "nf4".

    Returns:
        float32 [rows, in].
    """
    values = parts["values"]
    if fmt == "fp16":
        return values.astype(np.float32)
    rows = values.shape[0]
    scale = parts["scale"].astype(np.float32).reshape(rows, -1)
    numbers = _numbers(values.reshape(rows, -1), fmt, is_signed="zero_point" not in parts)
    groups = numbers.reshape(rows, scale.shape[1], -1)
    if "zero_point" in parts:
        groups = groups - parts["zero_point"].reshape(rows, -1, 1).astype(np.float32)
    return (groups * scale[:, :, None]).reshape(rows, -1)


def _numbers(values: npt.NDArray[Any], fmt: Format, *, is_signed: bool) -> Vector:
    """Return what stored values [rows, bytes] stand for before scales, float32 [rows, in]."""
    if fmt == "int8":
        return values.astype(np.float32)
    packed = values.view(np.uint8)
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(values.shape[0], -1)
    if fmt == "nf4":
        return NF4_LEVELS[halves]
    if is_signed:
        return (halves.astype(np.int8) ^ 8).astype(np.float32) - 8
    return halves.astype(np.float32)


def _pick_rows(blocks: list[npt.NDArray[Any]], rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    starts = np.cumsum([0, *[block.shape[0] for block in blocks]])
    which = np.searchsorted(starts, rows, side="right") - 1
    return np.stack([blocks[b][row - starts[b]] for b, row in zip(which, rows, strict=True)])
