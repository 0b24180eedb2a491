"""The weights of an ONNX model, checked against the file that holds them before an engine is.

An engine maps the data file and trusts offsets and lengths, so each must lie inside the file as
it is and fit the tensor's shape. The only other file a model may name is `model.onnx.data`
beside it. Nothing is read but the graph. Read `onnx_nodes.py` for what is done with the tensors.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import PackageError, format_bytes
from qwen_edge.runtime.backends.onnx_proto import EXPORT_AGAIN, Message, refusal, short
from qwen_edge.runtime.files.opening import open_inside
from qwen_edge.runtime.manifest import MODEL_ONNX, MODEL_ONNX_DATA

# Source: onnx.proto, TensorProto.DataType.
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, UINT4, INT4 = 1, 2, 3, 6, 7, 10, 21, 22
DTYPE_NAMES = {
    FLOAT: "float32", UINT8: "uint8", INT8: "int8", INT32: "int32", INT64: "int64",
    FLOAT16: "float16", UINT4: "uint4", INT4: "int4",
}  # fmt: skip
_BITS = {FLOAT: 32, UINT8: 8, INT8: 8, INT32: 32, INT64: 64, FLOAT16: 16, UINT4: 4, INT4: 4}
_INLINE, _EXTERNAL = 0, 1  # TensorProto.DataLocation
_MAX_TENSORS, _MAX_DIMS, _MAX_SIZE = 1 << 16, 8, 1 << 40
_MAX_KNOWN_VALUES = 16  # shapes and slice bounds are shorter
_DIGITS = re.compile(r"[0-9]{1,15}", re.ASCII)
_KEYS = frozenset({"location", "offset", "length", "checksum"})
_COPY_FOLDER = (
    "copy the folder, which makes separate files, and use the copy: on Linux and macOS "
    "`cp -rL`, on Windows `xcopy /E` or the file manager."
)


@dataclass(frozen=True)
class Tensor:
    """What the graph says of an initializer. `values` are those of short int64 ones."""

    name: str
    dtype: int
    dims: tuple[int, ...]
    values: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{short(self.name)} {describe(self.dtype, self.dims)}"


def describe(dtype: int, dims: tuple[int | str, ...]) -> str:
    """Return a type and shape as people write it."""
    return f"{DTYPE_NAMES.get(dtype, f'type {dtype}')} [{', '.join(map(str, dims))}]"


def data_size(folder: Path) -> int:
    """Return the size of the weights file, which must be a file of its own.

    Args:
        folder: The package folder.

    Raises:
        PackageError: It is missing, no regular file, or has a second name elsewhere.
    """
    path = open_inside(folder, MODEL_ONNX_DATA)
    try:
        facts = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    check_only_name(path, facts.st_nlink)
    return facts.st_size


def unreadable(path: Path, error: OSError) -> PackageError:
    """Return the error for a file that is there and cannot be opened."""
    return PackageError(
        f"{str(path)!r} cannot be read: {error.strerror or error}.",
        "check the permissions of the folder and of its files.",
        path=str(path),
    )


def check_only_name(path: Path, num_names: int) -> None:
    """Refuse a file that is another one's hard link: both engines would follow it.

    Args:
        path: The file, for the message.
        num_names: Its `st_nlink`; some file systems say 0.

    Raises:
        PackageError: The file has more than one name.
    """
    if num_names > 1:
        raise PackageError(
            f"{str(path)!r} is a hard link: the same bytes have {num_names} names, so that what "
            "is written elsewhere would change this model.",
            _COPY_FOLDER,
            path=str(path),
            num_names=num_names,
        )


def read_tensors(graph: Message, data_bytes: int) -> Mapping[str, Tensor]:
    """Check all initializers of a graph, and return them by name.

    Args:
        graph: GraphProto.
        data_bytes: Size of the weights file.

    Raises:
        PackageError: A tensor has an unknown type, an impossible shape, a name twice, another
            number of bytes than its shape needs, or lies outside the weights file.
    """
    if len(graph.initializer) > _MAX_TENSORS:
        raise refusal(f"has {len(graph.initializer):,} tensors, expected up to {_MAX_TENSORS:,}")
    tensors: dict[str, Tensor] = {}
    external_bytes = 0
    for message in graph.initializer:
        if not message.name or message.name in tensors:
            raise refusal(f"has two tensors named {short(message.name)}, or one without a name")
        needed_bytes = _needed_bytes(message)
        if message.data_location == _EXTERNAL:
            _check_external(message, needed_bytes, data_bytes)
            external_bytes += needed_bytes
        elif message.data_location == _INLINE:
            _check_inline(message, needed_bytes)
        else:
            raise _wrong(message, f"has data_location {message.data_location}, expected 0 or 1")
        tensors[message.name] = Tensor(
            message.name, message.data_type, tuple(message.dims), _known_values(message)
        )
    # A tied head shares its bytes with the embedding; a thousand tensors over one would be read
    # into a thousand copies.
    if external_bytes > 2 * data_bytes:
        raise refusal(
            f"has tensors of {external_bytes:,} bytes over a '{MODEL_ONNX_DATA}' of "
            f"{data_bytes:,}; each byte may be in two at most"
        )
    return tensors


def _wrong(message: Message, what: str) -> PackageError:
    return refusal(f"cannot be used: tensor {short(message.name)} {what}", tensor=message.name[:80])


def _needed_bytes(message: Message) -> int:
    """Return how many bytes a tensor of this type and shape has."""
    if message.data_type not in _BITS:
        raise _wrong(
            message,
            f"has data type {message.data_type}, expected one of {', '.join(DTYPE_NAMES.values())}",
        )
    dims = tuple(message.dims[: _MAX_DIMS + 1])
    size: int = math.prod(dims)
    if len(dims) > _MAX_DIMS or not all(1 <= dim <= _MAX_SIZE for dim in dims) or size > _MAX_SIZE:
        raise _wrong(
            message,
            f"has the shape [{', '.join(map(str, dims))}], expected up to {_MAX_DIMS} sizes from "
            f"1 and {_MAX_SIZE:,} elements",
        )
    return -(-size * _BITS[message.data_type] // 8)


def _check_inline(message: Message, needed_bytes: int) -> None:
    if message.external_data:
        raise _wrong(message, "is in the graph and in a file at once")
    if len(message.raw_data) != needed_bytes:
        raise _wrong(
            message,
            f"has {len(message.raw_data):,} bytes in the graph, expected {needed_bytes:,} for "
            f"{describe(message.data_type, tuple(message.dims))}",
        )


def _check_external(message: Message, needed_bytes: int, data_bytes: int) -> None:
    if message.HasField("raw_data"):
        raise _wrong(message, "is in the graph and in a file at once")
    entries: dict[str, str] = {}
    for entry in message.external_data:
        if entry.key not in _KEYS or entry.key in entries:
            raise _wrong(
                message,
                f"has the external data key {short(entry.key)} twice or for nothing known, "
                f"expected {', '.join(sorted(_KEYS))}",
            )
        entries[entry.key] = entry.value
    location = entries.get("location", "")
    if location != MODEL_ONNX_DATA:
        raise _wrong(message, f"is in the file {short(location)}, expected '{MODEL_ONNX_DATA}'")
    offset, length = (_number(message, key, entries.get(key, "")) for key in ("offset", "length"))
    if length != needed_bytes:
        raise _wrong(
            message,
            f"has {length:,} bytes in '{MODEL_ONNX_DATA}', expected {needed_bytes:,} for "
            f"{describe(message.data_type, tuple(message.dims))}",
        )
    if offset + length > data_bytes:
        raise PackageError(
            f"'{MODEL_ONNX_DATA}' has {data_bytes:,} bytes ({format_bytes(data_bytes)}), but "
            f"tensor {short(message.name)} of '{MODEL_ONNX}' ends at byte {offset + length:,} "
            f"({format_bytes(offset + length)}): the file is cut off or belongs to another graph.",
            EXPORT_AGAIN,
            size_bytes=data_bytes,
            needed_bytes=offset + length,
        )


def _number(message: Message, key: str, value: str) -> int:
    if not _DIGITS.fullmatch(value):
        raise _wrong(
            message, f"has the {key} {short(value)}, expected a whole number of up to 15 digits"
        )
    return int(value)


def _known_values(message: Message) -> tuple[int, ...] | None:
    """Return the numbers of a short int64 tensor in the graph: they are shapes and bounds."""
    count = math.prod(message.dims)
    is_short = message.data_type == INT64 and count <= _MAX_KNOWN_VALUES
    if not is_short or message.data_location != _INLINE:
        return None
    return struct.unpack(f"<{count}q", message.raw_data)
