"""The form of a snapshot's file: a checked header that lists arrays, and their bytes.

    8 bytes   magic
    4 bytes   version of the form, little-endian
    4 bytes   length of the header, little-endian
    32 bytes  SHA-256 of the header
    header    JSON, see `SnapshotHeader`
    arrays    one behind the other, little-endian, without gaps

Every byte is covered: by the magic, by one of the numbers, or by a hash. Nothing is allocated
before the header is known to be whole and to list exactly the bytes that follow. This module knows
no backend; `snapshot_file.py` says what the arrays are.
"""

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import PackageError, UsageError, format_bytes, join_problems
from qwen_edge.runtime.schema import SchemaError, parse_json, read_dataclass, to_json

MAGIC = b"\x89QEsnap\n"  # a byte above 127 and a line end: what text modes damage first
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sII32s")
_MAX_HEADER_BYTES = 1 << 20  # a real one has some 30 kB
_MAX_ARRAYS = 4096
_MAX_AXES, _MAX_SIZE = 5, 1 << 40
_HASH_BYTES = 64  # hex digits
_NUM_THREADS = 2
_COPY_AGAIN = "copy the file again from where it came from, or save the conversation again."

Array = npt.NDArray[Any]
DTypeName = Literal["uint8", "uint16", "int32", "float16", "float32"]


@dataclass(frozen=True)
class ArrayFacts:
    """Type, shape, place in the file and SHA-256 of one array."""

    dtype: DTypeName
    shape: tuple[int, ...]
    offset: int
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class SnapshotHeader:
    """What a snapshot says of itself.

    Args:
        package: Name of the package, for messages.
        package_hash: Names the package's files; see `binding.py`.
        settings: Those of the binding.
        kind: Kind of backend.
        vocab_size: Of the model.
        engine_settings: Those of the backend's snapshot.
        num_tokens: Tokens in the cache.
        arrays: The token ids, the conversation as JSON (empty for none), and those of the cache.
    """

    package: str
    package_hash: str
    settings: Mapping[str, str]
    kind: str
    vocab_size: int
    engine_settings: Mapping[str, str]
    num_tokens: int
    arrays: tuple[ArrayFacts, ...]


@dataclass(frozen=True)
class OpenSnapshot:
    """A snapshot's file, its header read and found whole.

    Args:
        path: For messages.
        header: The header.
        stream: Stands behind the header.
    """

    path: Path
    header: SnapshotHeader
    stream: BinaryIO

    def read_arrays(self) -> list[Array]:
        """Return all arrays, each compared with its hash.

        Raises:
            PackageError: The file is damaged, or was changed while it was read.
        """
        facts = self.header.arrays
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="snapshot") as pool:
            arrays: list[Array] = []
            hashes: list[Future[str]] = []
            for entry in facts:
                arrays.append(self._read(entry))
                hashes.append(pool.submit(_hash, arrays[-1]))
            for index, (entry, found) in enumerate(zip(facts, hashes, strict=True)):
                if found.result() != entry.sha256:
                    raise damaged(self.path, f"array {index} has other contents than were saved")
        return arrays

    def read_ids(self) -> tuple[int, ...]:
        """Return the token ids alone; nothing else can be read of this file afterwards.

        Raises:
            PackageError: They are damaged.
        """
        ids = self._read(self.header.arrays[0])
        if _hash(ids) != self.header.arrays[0].sha256:
            raise damaged(self.path, "its ids are others than were saved")
        return tuple(ids.tolist())

    def _read(self, entry: ArrayFacts) -> Array:
        array = np.empty(entry.shape, dtype=np.dtype(entry.dtype).newbyteorder("<"))
        self._fill(array, entry)
        return array

    def _fill(self, array: Array, entry: ArrayFacts) -> None:
        view = _view_bytes(array)
        done = 0
        try:
            while done < len(view):
                count = self.stream.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise damaged(self.path, f"it ends at byte {entry.offset + done:,}")
                done += count
        except OSError as error:
            raise unreadable(self.path, error) from error


def write_container(stream: BinaryIO, arrays: Sequence[Array], facts: Mapping[str, object]) -> None:
    """Write a snapshot.

    Args:
        stream: Empty.
        arrays: Of types that the form knows.
        facts: All of `SnapshotHeader` but its arrays.
    """
    plain = [np.ascontiguousarray(_little(array)) for array in arrays]
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="snapshot") as pool:
        hashes = list(pool.map(_hash, plain))
    sizes = [array.nbytes for array in plain]
    # Offsets are part of the header, and its length depends on their digits: they count from the
    # header's end.
    offsets = [sum(sizes[:index]) for index in range(len(sizes))]
    entries = [
        ArrayFacts(_dtype_name(array), array.shape, offset, sha256)
        for array, offset, sha256 in zip(plain, offsets, hashes, strict=True)
    ]
    content = {**facts, "arrays": to_json(entries)}
    header = json.dumps(to_json(content), sort_keys=True, allow_nan=False).encode("utf-8")
    digest = hashlib.sha256(header).digest()
    stream.write(_PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), digest))
    stream.write(header)
    for array in plain:
        stream.write(_view_bytes(array))


@contextmanager
def open_container(path: Path, *, max_bytes: int) -> Iterator[OpenSnapshot]:
    """Open a snapshot's file and check its form; the arrays are not read yet.

    Args:
        path: The file.
        max_bytes: Size from which it cannot be what is expected.

    Raises:
        UsageError: There is no such file, or it is no regular one.
        PackageError: It is no snapshot, damaged, cut short, too large or of a newer form.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(
                f"{str(path)!r} is no regular file.", "give the path of a saved snapshot."
            )
        with path.open("rb", buffering=0) as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            header = _read_header(path, stream, num_bytes, max_bytes)
            yield OpenSnapshot(path, header, stream)
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no file {str(path)!r}.", "check the path.", path=str(path)
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def is_container(path: Path) -> bool:
    """Whether a file begins as a snapshot does."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def damaged(path: Path, problem: str) -> PackageError:
    """Return the error for a file that is not as it was written."""
    return PackageError(
        f"The snapshot {str(path)!r} is damaged: {problem}. Nothing of it was used.",
        _COPY_AGAIN,
        path=str(path),
    )


def unreadable(path: Path, error: OSError) -> PackageError:
    """Return the error for a file that the system does not let us read."""
    return PackageError(
        f"The snapshot {str(path)!r} cannot be read: {error.strerror or error}.",
        "check the permissions of the file and the disk it is on.",
        path=str(path),
    )


def _read_header(path: Path, stream: BinaryIO, num_bytes: int, max_bytes: int) -> SnapshotHeader:
    """Return the header of a file whose size fits it."""
    prefix = _read_exactly(stream, min(num_bytes, _PREFIX.size))
    if not prefix.startswith(MAGIC):
        raise PackageError(
            f"{str(path)!r} is no snapshot: it does not begin as one.",
            "give a file that was saved by this program.",
            path=str(path),
        )
    if len(prefix) < _PREFIX.size:
        raise damaged(path, f"it ends at byte {len(prefix):,}")
    _, version, header_bytes, digest = _PREFIX.unpack(prefix)
    if version > FORMAT_VERSION:
        raise PackageError(
            f"The snapshot {str(path)!r} has version {version:,} of the form; this qwen-edge "
            f"reads up to {FORMAT_VERSION}.",
            "pip install --upgrade qwen-edge, or save the conversation again with this version.",
            path=str(path),
        )
    if version < 1 or header_bytes > min(_MAX_HEADER_BYTES, num_bytes - _PREFIX.size):
        raise damaged(path, f"its header has {header_bytes:,} bytes and version {version}")
    text = _read_exactly(stream, header_bytes)
    if hashlib.sha256(text).digest() != digest:
        raise damaged(path, "its header has other contents than were saved")
    if num_bytes > max_bytes:
        raise PackageError(
            f"The snapshot {str(path)!r} has {format_bytes(num_bytes)}; a conversation of this "
            f"model takes {format_bytes(max_bytes)} at most.",
            "give a snapshot of this package.",
            path=str(path),
        )
    try:
        header = read_dataclass(SnapshotHeader, parse_json(text))
    except SchemaError as error:
        raise damaged(path, join_problems(error.problems)) from error
    problem = _find_problem(header, num_bytes - _PREFIX.size - header_bytes)
    if problem is not None:
        raise damaged(path, problem)
    return header


def _find_problem(header: SnapshotHeader, num_bytes: int) -> str | None:
    """Return why a header cannot be that of so many bytes, or None."""
    if not 2 <= len(header.arrays) <= _MAX_ARRAYS:
        return f"it lists {len(header.arrays):,} arrays"
    if len(header.package_hash) != _HASH_BYTES or header.vocab_size < 1:
        return "it does not say what it belongs to"
    end = 0
    for index, entry in enumerate(header.arrays):
        if len(entry.shape) > _MAX_AXES or not all(0 <= size <= _MAX_SIZE for size in entry.shape):
            return f"array {index} has a shape that none has"
        if entry.offset != end:
            return f"array {index} begins at {entry.offset:,}, expected {end:,}"
        end += entry.num_bytes
    if end != num_bytes:
        verb = "is cut off at" if num_bytes < end else "has"
        return f"it {verb} {num_bytes:,} bytes of arrays, expected {end:,}"
    ids = header.arrays[0]
    if ids.dtype != "int32" or ids.shape != (header.num_tokens,):
        return f"its ids are {ids.dtype} of shape {ids.shape}, expected {header.num_tokens:,}"
    if header.arrays[1].dtype != "uint8" or len(header.arrays[1].shape) != 1:
        return "its conversation is no text"
    return None


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    """Return so many bytes, or fewer at the end of the file."""
    parts = []
    while count > 0 and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _dtype_name(array: Array) -> DTypeName:
    names: dict[str, DTypeName] = {
        name: name for name in ("uint8", "uint16", "int32", "float16", "float32")
    }
    return names[array.dtype.name]


def _little(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _hash(array: Array) -> str:
    return hashlib.sha256(_view_bytes(array)).hexdigest()


def _view_bytes(array: Array) -> memoryview:
    """Return the bytes of a contiguous array, not a copy of them."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)
