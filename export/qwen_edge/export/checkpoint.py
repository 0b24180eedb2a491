"""A checkpoint folder as memory-mapped tensors: never loaded whole, never trusted.

It checks names, shapes and dtypes against what the decoder needs before any work starts, and
values (finite or not) while they are read. It does not know what a layer is. Read
`tensor_files.py` for where tensors lie, `decoder.py` for the names and shapes that are
needed, `compress.py` for what happens to the values.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import CheckpointError, join_problems
from qwen_edge.export.config_fields import shown
from qwen_edge.export.decoder import EMBEDDING_NAME, HEAD_NAME
from qwen_edge.export.tensor_files import TensorEntry, list_tensors

_CHUNK_ELEMENTS = 1 << 21  # 4 MB of bf16: stays in the second-level cache while it is scanned
_STORAGE: dict[str, np.dtype[np.generic]] = {
    "BF16": np.dtype("<u2"),  # NumPy has no bfloat16; the bits are kept as they are
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
FLOAT_DTYPES = frozenset(_STORAGE)
"""What a weight may be stored as, in the words of a safetensors header."""

# The exponent bits of each dtype: all ones means NaN or infinity.
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
_UNSIGNED = {"BF16": "<u2", "F16": "<u2", "F32": "<u4"}
# Old Llama files carry the rotary frequencies as a tensor; they follow from config.json.
_DERIVED_SUFFIX = ".rotary_emb.inv_freq"


class Checkpoint:
    """The tensors of one checkpoint folder.

    Args:
        folder: The folder that holds the files.
        entries: Tensor name to place, as `open_checkpoint` found them.

    State:
        Opens a read-only memory map per shard on first use and keeps it until `close`.
        Arrays handed out are views of these maps.
    """

    def __init__(self, folder: Path, entries: Mapping[str, TensorEntry]) -> None:
        self.folder = folder
        self.entries = dict(entries)
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.size_bytes for entry in self.entries.values())

    def raw(self, name: str) -> npt.NDArray[np.generic]:
        """Return one tensor as it is stored, without a copy.

        Args:
            name: A tensor name that `entries` has.

        Returns:
            uint16 bits (BF16), float16 (F16) or float32 (F32), in the tensor's shape; a
            read-only view that is good until `close`.
        """
        entry = self.entries[name]
        mapped = self._maps.get(entry.path)
        if mapped is None:
            mapped = np.memmap(entry.path, dtype=np.uint8, mode="r")
            self._maps[entry.path] = mapped
        piece = mapped[entry.offset_bytes : entry.offset_bytes + entry.size_bytes]
        return piece.view(_STORAGE[entry.dtype]).reshape(entry.shape)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor as a new float32 array in the tensor's shape."""
        return widen(self.raw(name), self.entries[name].dtype)

    def check_finite(self, name: str) -> None:
        """Refuse a tensor that holds NaN or infinity.

        Args:
            name: A tensor name that `entries` has.

        Raises:
            CheckpointError: Names the tensor, the first such place and how many there are.
        """
        entry = self.entries[name]
        bits = self.raw(name).reshape(-1).view(_UNSIGNED[entry.dtype])
        exponent = bits.dtype.type(_EXPONENT[entry.dtype])
        num_bad, first_bad = 0, -1
        for start in range(0, bits.size, _CHUNK_ELEMENTS):
            chunk = bits[start : start + _CHUNK_ELEMENTS] & exponent
            if chunk.max() == exponent:
                places = np.flatnonzero(chunk == exponent)
                num_bad += places.size
                first_bad = start + int(places[0]) if first_bad < 0 else first_bad
        if num_bad:
            place = [int(i) for i in np.unravel_index(first_bad, entry.shape)]
            raise CheckpointError(
                f"Tensor {name!r} in {entry.path.name!r} holds {num_bad:,} values that are NaN or "
                f"infinite, the first at {place}. Every answer of such a model would be noise.",
                "fetch the checkpoint again, or export an earlier step of the fine-tune",
                tensor=name,
                num_bad=num_bad,
                first=place,
            )

    def close(self) -> None:
        """Drop the memory maps. Arrays handed out keep theirs alive until they go."""
        self._maps.clear()


def widen(array: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.float32]:
    """Return stored values as float32, exactly.

    Args:
        array: As `Checkpoint.raw` returns it; any shape.
        dtype: "BF16", "F16" or "F32".

    Returns:
        A new float32 array of the same shape.
    """
    wide = np.empty(array.shape, np.float32)
    widen_into(array, dtype, wide)
    return wide


def widen_into(array: npt.NDArray[np.generic], dtype: str, out: npt.NDArray[np.float32]) -> None:
    """Write stored values as float32 into an array of the same shape.

    Args:
        array: As `Checkpoint.raw` returns it; any shape.
        dtype: "BF16", "F16" or "F32".
        out: Overwritten; contiguous.
    """
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        bits = out.view(np.uint32)
        np.copyto(bits, array, casting="unsafe")
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, array, casting="unsafe")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of every shard in a folder.

    Args:
        folder: Holds `model.safetensors`, or shards named by `model.safetensors.index.json`.

    Returns:
        The checkpoint, with every tensor's place. No weight has been read.

    Raises:
        CheckpointError: See `list_tensors`.
    """
    return Checkpoint(folder, list_tensors(folder))


def check_tensors(
    checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]], *, is_tied: bool
) -> None:
    """Compare the checkpoint's tensors with what the decoder needs.

    Args:
        checkpoint: As opened.
        expected: Every tensor name the decoder reads, with its shape.
        is_tied: The output head reads the embedding. A stored `lm_head.weight` is then
            accepted when it equals the embedding, as several Qwen3 checkpoints have it.

    Raises:
        CheckpointError: Lists missing, extra, wrongly shaped and unreadable tensors.
    """
    entries = checkpoint.entries
    missing = sorted(set(expected) - set(entries))
    extra = sorted(n for n in set(entries) - set(expected) if not n.endswith(_DERIVED_SUFFIX))
    problems = [f"{name!r} is missing" for name in missing]
    if is_tied and HEAD_NAME in extra:
        extra.remove(HEAD_NAME)
        problems += _tied_head_problems(checkpoint, expected[EMBEDDING_NAME])
    problems += [f"{shown(name)} is not part of this architecture" for name in extra]
    for name, shape in expected.items():
        entry = entries.get(name)
        if entry is None:
            continue
        if entry.shape != shape:
            problems.append(f"{name!r} has shape {list(entry.shape)}, expected {list(shape)}")
        if entry.dtype not in _STORAGE:
            problems.append(f"{name!r} has dtype {entry.dtype}, expected BF16, F16 or F32")
    if problems:
        raise CheckpointError(
            f"The tensors of {str(checkpoint.folder)!r} do not fit its config.json in "
            f"{len(problems):,} places: {join_problems(problems)}.",
            "use a folder whose config.json and weights belong together; a quantised "
            "checkpoint (FP8, GPTQ, AWQ) must be replaced by the original it was made from",
            problems=problems,
        )


def _tied_head_problems(checkpoint: Checkpoint, shape: tuple[int, ...]) -> list[str]:
    head, embedding = checkpoint.entries[HEAD_NAME], checkpoint.entries.get(EMBEDDING_NAME)
    if embedding is None or embedding.shape != shape or embedding.dtype not in _STORAGE:
        return []  # that is a problem of its own, and listed
    if head.shape == shape and head.dtype == embedding.dtype:
        # Bytes, not numbers: a NaN in both is for `check_finite` to find.
        a, b = (checkpoint.raw(entry.name).view(np.uint8) for entry in (head, embedding))
        step = max(1, _CHUNK_ELEMENTS // shape[-1])
        if all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, shape[0], step)):
            return []
    return [f"{HEAD_NAME!r} differs from the embedding although tie_word_embeddings is true"]
