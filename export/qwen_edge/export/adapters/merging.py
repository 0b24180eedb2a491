"""The arithmetic of a merge, and a checkpoint whose tensors have it done to them when read.

Works through a matrix in blocks of rows, in float32, and rounds once to the checkpoint's own dtype,
as peft does. What comes out is as large as the tensor itself and no larger; a vocabulary's matrix
lies in a temporary file. Which tensor changes how is decided in `matching.py`.
"""

import errno
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import CheckpointError, ResourceError, format_bytes
from qwen_edge.export.adapters.opening import Adapter
from qwen_edge.export.checkpoint import Checkpoint, widen
from qwen_edge.export.tensor_files import TensorEntry

_BLOCK_VALUES = 1 << 18  # values at once: 1 MB as float32 stays in the second-level cache
_MAPPED_BYTES = 1 << 28  # a larger tensor goes to a file: the matrices of a vocabulary

Rows = npt.NDArray[np.float32]
"""float32 [rows, …] of one tensor."""


@dataclass(frozen=True)
class LowRank:
    """A product of two narrow matrices, added to a weight.

    Args:
        first: Name of A, [rank, in]; of an embedding [rank, vocabulary].
        second: Name of B, [out, rank]; of an embedding [width, rank].
        scale: What the product is multiplied by.
        is_embedding: The weight is the product's transpose.
        magnitude: Name of DoRA's lengths, [out]; of an embedding [width]. None for a plain LoRA.
    """

    first: str
    second: str
    scale: float
    is_embedding: bool = False
    magnitude: str | None = None


@dataclass(frozen=True)
class TensorChange:
    """What one adapter does to one tensor of the checkpoint, in this order.

    Args:
        adapter: Whose tensors the names below are.
        replacement: Name of a tensor that takes the place of the checkpoint's.
        token_ids: Rows that are replaced.
        token_rows: Name of what they are replaced by.
        low_rank: A product that is added.
        addition: Name of a vector that is added, such as LoRA's own bias.
        addition_scale: What it is multiplied by.
    """

    adapter: Adapter
    replacement: str | None = None
    token_ids: tuple[int, ...] = ()
    token_rows: str | None = None
    low_rank: LowRank | None = None
    addition: str | None = None
    addition_scale: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """The adapter's tensors that take part."""
        names = [self.replacement, self.token_rows, self.addition]
        if self.low_rank is not None:
            names += [self.low_rank.first, self.low_rank.second, self.low_rank.magnitude]
        return tuple(name for name in names if name is not None)

    @property
    def is_plain(self) -> bool:
        """Whether it is an addition that does not look at what it is added to."""
        has_lengths = self.low_rank is not None and self.low_rank.magnitude is not None
        return self.replacement is None and self.token_rows is None and not has_lengths


class MergedCheckpoint(Checkpoint):
    """A checkpoint with adapters merged into it: same names, shapes and dtypes.

    Args:
        folder: The checkpoint's.
        entries: Its tensors.
        changes: By the name of the tensor; at least one change for each.

    State:
        As `Checkpoint`. The tensor merged last is kept, and tensors of more than
        `_MAPPED_BYTES` lie in temporary files until `close`.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, TensorEntry],
        changes: Mapping[str, Sequence[TensorChange]],
    ) -> None:
        super().__init__(folder, entries)
        self._stored = Checkpoint(folder, entries)
        self._changes = changes
        self._last: tuple[str, npt.NDArray[Any]] | None = None
        self._mapped: dict[str, npt.NDArray[Any]] = {}

    def raw(self, name: str) -> npt.NDArray[np.generic]:
        """Return one tensor in its dtype; a view of the file where no adapter changes it.

        Raises:
            ResourceError: The disk of temporary files is too small.
        """
        changes = self._changes.get(name)
        if not changes:
            return self._stored.raw(name)
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        if name in self._mapped:
            return self._mapped[name]
        self._last = None  # its memory is for this one
        entry = self.entries[name]
        merge = _TensorMerge(self._stored.raw(name), entry.dtype, changes)
        if entry.size_bytes > _MAPPED_BYTES:
            self._mapped[name] = merge.write(entry)
            return self._mapped[name]
        merged = merge.compute()
        self._last = (name, merged)
        return merged

    def check_finite(self, name: str) -> None:
        """Refuse a tensor that holds NaN or infinity: stored, in an adapter, or after the merge.

        Raises:
            CheckpointError: Names the tensor and the file.
        """
        self._stored.check_finite(name)
        changes = self._changes.get(name, ())
        for change in changes:
            for part in change.names:
                change.adapter.tensors.check_finite(part)
        if not changes:
            return
        merged, dtype = self.raw(name), self.entries[name].dtype
        for start, stop in _blocks(merged.shape):
            if not np.isfinite(widen(merged[start:stop], dtype)).all():
                names = ", ".join(repr(change.adapter.name) for change in changes)
                raise CheckpointError(
                    f"With the adapters merged ({names}), tensor {name!r} leaves the range of its "
                    f"dtype {dtype}.",
                    "give the adapter a smaller weight, such as --adapter DIR=0.5, or use a "
                    "checkpoint stored as BF16",
                    tensor=name,
                )

    def close(self) -> None:
        """Drop memory maps, temporary files and the adapters' own maps."""
        self._stored.close()
        self._last = None
        self._mapped.clear()
        for changes in self._changes.values():
            for change in changes:
                change.adapter.tensors.close()


@dataclass(frozen=True)
class _TensorMerge:
    """One tensor with its changes, block by block.

    Args:
        stored: As the checkpoint holds it.
        dtype: Of it.
        changes: In the order of the adapters.
    """

    stored: npt.NDArray[Any]
    dtype: str
    changes: Sequence[TensorChange]

    @cached_property
    def _parts(self) -> list["_Part"]:
        return [_Part(change, self.stored, self.dtype) for change in self.changes]

    def compute(self) -> npt.NDArray[Any]:
        """Return the whole tensor, read only."""
        merged = np.empty(self.stored.shape, self.stored.dtype)
        for start, stop in _blocks(merged.shape):
            merged[start:stop] = self._block(start, stop)
        merged.flags.writeable = False
        return merged

    def write(self, entry: TensorEntry) -> npt.NDArray[Any]:
        """Return the whole tensor as a map of a file that goes away with it.

        Raises:
            ResourceError: The disk is full.
        """
        # Written, not mapped for writing: a full disk is then an error and not a killed process.
        with tempfile.TemporaryFile(prefix="qwen-edge-") as file:
            try:
                for start, stop in _blocks(entry.shape):
                    file.write(self._block(start, stop).data)
                file.flush()
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                raise ResourceError(
                    f"Merging {entry.name!r} needs {format_bytes(entry.size_bytes)} in "
                    f"{tempfile.gettempdir()!r}, and the disk is full.",
                    "free some space there, or set TMPDIR (TEMP on Windows) to a larger disk",
                    needed_bytes=entry.size_bytes,
                ) from exc
            return np.memmap(file, self.stored.dtype, "r", shape=entry.shape)

    def _block(self, start: int, stop: int) -> npt.NDArray[Any]:
        wide = widen(self.stored[start:stop], self.dtype)
        if all(change.is_plain for change in self.changes):
            added = sum(part.added(start, stop, part.weight) for part in self._parts)
            wide += self._parts[0].rounded(np.asarray(added))
        elif len(self._parts) == 1 and self._parts[0].weight == 1:
            wide = self._parts[0].changed(wide, start, stop)
        else:
            before = wide.copy()
            for part in self._parts:
                wide += np.float32(part.weight) * (part.changed(before, start, stop) - before)
        return narrow(wide, self.dtype)


@dataclass
class _Part:
    """One adapter's change of a tensor, with the tensors that it needs in memory.

    Args:
        change: What is to be done.
        stored: As the checkpoint holds the tensor.
        dtype: Of it.
    """

    change: TensorChange
    stored: npt.NDArray[Any]
    dtype: str
    weight: float = field(init=False)
    is_embedding: bool = field(init=False)

    def __post_init__(self) -> None:
        low_rank = self.change.low_rank
        self.weight = self.change.adapter.weight
        self.is_embedding = low_rank is not None and low_rank.is_embedding

    @cached_property
    def _factors(self) -> tuple[Rows, Rows]:
        """Return what gives rows of the weight when rows of the first multiply the second."""
        low_rank, tensors = self.change.low_rank, self.change.adapter.tensors
        if low_rank is None:
            raise ValueError("this change has no product")
        first, second = tensors.float32(low_rank.first), tensors.float32(low_rank.second)
        return (first.T, second.T) if low_rank.is_embedding else (second, first)

    @cached_property
    def _addition(self) -> Rows:
        if self.change.addition is None:
            raise ValueError("this change adds no vector")
        return self.change.adapter.tensors.float32(self.change.addition)

    @cached_property
    def _embedding_lengths(self) -> Rows:
        """Return the length of each column of the changed embedding, float32 [width]."""
        squares = np.zeros(self.stored.shape[1])
        for start, stop in _blocks(self.stored.shape):
            rows = self._base(widen(self.stored[start:stop], self.dtype), start, stop)
            rows += self.added(start, stop)
            squares += np.square(rows, dtype=np.float64).sum(axis=0)
        return np.sqrt(squares).astype(np.float32)

    def added(self, start: int, stop: int, weight: float = 1.0) -> Rows:
        """Return the rows of what is added, times a weight."""
        if self.change.addition is not None:
            factor = np.float32(self.change.addition_scale * weight)
            added: Rows = self._addition[start:stop] * factor
            return added
        low_rank = self.change.low_rank
        if low_rank is None:
            return np.zeros((stop - start, *self.stored.shape[1:]), np.float32)
        left, right = self._factors
        with np.errstate(over="ignore", invalid="ignore"):  # `check_finite` says so
            product: Rows = left[start:stop] @ right
            product *= np.float32(low_rank.scale * weight)
        return product

    def rounded(self, added: Rows) -> Rows:
        """Return what is added to an embedding as its dtype holds it, and other things as they are.

        Source:
            peft 0.21.2, tuners/lora/layer.py: Embedding.merge does so, Linear.merge does not.
        """
        return widen(narrow(added, self.dtype), self.dtype) if self.is_embedding else added

    def changed(self, wide: Rows, start: int, stop: int) -> Rows:
        """Return the rows as this adapter alone makes them."""
        low_rank, added = self.change.low_rank, self.added(start, stop)
        rows = self._base(wide, start, stop)
        if low_rank is None or low_rank.magnitude is None:
            rows += self.rounded(added)
            return rows
        rows += added
        lengths = self.change.adapter.tensors.float32(low_rank.magnitude).reshape(-1)
        with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros has no direction
            if low_rank.is_embedding:
                rows *= lengths / self._embedding_lengths
            else:
                found = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1)).astype(np.float32)
                rows *= (lengths[start:stop] / found)[:, None]
        return rows

    def _base(self, wide: Rows, start: int, stop: int) -> Rows:
        """Return a copy of the rows with what is replaced in them."""
        change, tensors = self.change, self.change.adapter.tensors
        if change.replacement is not None:
            name = change.replacement
            rows = widen(tensors.raw(name)[start:stop], tensors.entries[name].dtype)
        else:
            rows = wide.copy()
        if change.token_rows is not None:
            trained = tensors.float32(change.token_rows)
            for place, token_id in enumerate(change.token_ids):
                if start <= token_id < stop:
                    rows[token_id - start] = trained[place]
        return rows


def _blocks(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return where blocks of rows begin and end."""
    width = int(np.prod(shape[1:])) or 1
    step = max(1, _BLOCK_VALUES // width)
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def narrow(wide: Rows, dtype: str) -> npt.NDArray[Any]:
    """Round float32 values to a stored dtype, to the nearest and halves to even.

    Args:
        wide: float32, contiguous; any shape.
        dtype: "BF16", "F16" or "F32".

    Returns:
        uint16 bits (BF16), float16 or float32 of the same shape. What is too large is infinite.
    """
    if dtype == "F32":
        return wide
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return wide.astype(np.float16)
    bits = np.ascontiguousarray(wide).view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    narrowed = rounded.astype(np.uint16)
    nan = np.isnan(wide)
    if nan.any():  # the carry has turned some into zero
        narrowed[nan] = 0x7FC0
    return narrowed
