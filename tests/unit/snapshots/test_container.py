"""The file's form: what is written is read, and whatever is changed in it is noticed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import EdgeError, PackageError, UsageError
from qwen_edge.runtime.snapshots.container import MAGIC, open_container, write_container

Array = npt.NDArray[Any]
FACTS: dict[str, object] = {
    "package": "a package",
    "package_hash": "0" * 64,
    "settings": {"device": "CPU"},
    "kind": "openvino",
    "vocab_size": 64,
    "engine_settings": {},
    "num_tokens": 3,
}
ARRAYS: list[Array] = [
    np.array([1, 2, 3], np.int32),
    np.frombuffer(b'{"a": 1}', np.uint8),
    np.array([1, 0, 1, 1], np.uint8),
    np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4),
    np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 2, 3, 1, 2),
    np.ones((1, 2, 3, 4), np.float16),
    np.zeros((1, 2, 0, 4), np.float32),
]
LARGE = 1 << 20


def write(path: Path, arrays: list[Array] | None = None, **facts: object) -> bytes:
    with path.open("wb") as stream:
        write_container(stream, ARRAYS if arrays is None else arrays, FACTS | facts)
    return path.read_bytes()


def read(path: Path, max_bytes: int = LARGE) -> list[Array]:
    with open_container(path, max_bytes=max_bytes) as opened:
        return opened.read_arrays()


def rewrite_header(data: bytes, change: dict[str, Any]) -> bytes:
    """Return a file whose header says something else, with a hash that fits it."""
    import hashlib
    import struct

    magic, version, length, _ = struct.unpack_from("<8sII32s", data)
    header = json.loads(data[48 : 48 + length]) | change
    text = json.dumps(header).encode()
    prefix = struct.pack("<8sII32s", magic, version, len(text), hashlib.sha256(text).digest())
    return prefix + text + data[48 + length :]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "file")
    with open_container(tmp_path / "file", max_bytes=LARGE) as opened:
        assert (opened.header.package, opened.header.num_tokens) == ("a package", 3)
        found = opened.read_arrays()
    for array, expected in zip(found, ARRAYS, strict=True):
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(array, expected)
    with open_container(tmp_path / "file", max_bytes=LARGE) as opened:
        assert opened.read_ids() == (1, 2, 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_byte_that_is_changed_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "file"
    whole = bytearray(write(path))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises(PackageError) as caught:
        read(path)
    assert caught.value.fix


@pytest.mark.trust("T-PKG-14")
def test_every_byte_counts(tmp_path: Path) -> None:
    """The same without chance, a bit at a time, over the whole file."""
    path = tmp_path / "file"
    whole = bytearray(write(path, ARRAYS[:3]))
    for position in range(len(whole)):
        whole[position] ^= 1 << position % 8
        path.write_bytes(whole)
        with pytest.raises(PackageError):
            read(path)
        whole[position] ^= 1 << position % 8


@pytest.mark.trust("T-PKG-14")
def test_every_length_counts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = write(path)
    for length in [*range(60), *range(60, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(PackageError):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(PackageError, match="has 145 bytes of arrays, expected 144"):
        read(path)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "file")
    with open_container(tmp_path / "file", max_bytes=LARGE) as opened:
        os.truncate(tmp_path / "file", len(whole) - 10)
        with pytest.raises(PackageError, match="it ends at byte"):
            opened.read_arrays()


@pytest.mark.trust("T-PKG-14")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arrays": []}, "lists 0 arrays"),
        ({"vocab_size": 0}, "does not say what it belongs to"),
        ({"package_hash": "1"}, "does not say what it belongs to"),
        ({"num_tokens": 4}, r"its ids are int32 of shape \(3,\), expected 4"),
        ({"kind": 3}, "'kind' is 3, expected a text"),
        ({"more": 1}, "'more' is not a key of this format"),
    ],
)
def test_header_that_contradicts_itself(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(rewrite_header(write(path), change))
    with pytest.raises(PackageError, match=words):
        read(path)


@pytest.mark.trust("T-PKG-14")
@pytest.mark.parametrize(
    ("shape", "offset", "dtype", "words"),
    [
        ((1 << 40,), 0, "uint8", "begins at 12, expected 1,099,511,627,776"),
        ((1 << 39,) * 5, 0, "float32", "begins at 12, expected"),
        ((10**4000,) * 2, 0, "float32", "has a shape that none has"),
        ((-3,), 0, "int32", "has a shape that none has"),
        ((3,), 1, "int32", "begins at 1, expected 0"),
        ((3,), 0, "object", "'object', expected one of: 'uint8'"),
        ((3,), 0, "float64", "'float64', expected one of: 'uint8'"),
        ((1,) * 6, 0, "int32", "has a shape that none has"),
    ],
)
def test_table_that_lies_allocates_nothing(
    tmp_path: Path, shape: tuple[int, ...], offset: int, dtype: str, words: str
) -> None:
    path = tmp_path / "file"
    whole = write(path)
    with open_container(path, max_bytes=LARGE) as opened:
        table = [dict(vars(entry)) for entry in opened.header.arrays]
    table[0] |= {"shape": list(shape), "offset": offset, "dtype": dtype}
    path.write_bytes(rewrite_header(whole, {"arrays": table}))
    with pytest.raises(PackageError, match=words), open_container(path, max_bytes=LARGE):
        pass


def test_newer_form_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = bytearray(write(path))
    whole[8] = 2
    path.write_bytes(whole)
    with pytest.raises(PackageError, match="has version 2 of the form") as caught:
        read(path)
    assert "pip install --upgrade qwen-edge" in caught.value.fix


def test_other_files_are_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"{}", MAGIC[:4], b"\x89PNG\r\n" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(PackageError, match="is no snapshot"):
            read(path)
    with pytest.raises(UsageError, match="There is no file"):
        read(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is no regular file"):
        read(tmp_path)


def test_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "file")
    with pytest.raises(PackageError, match="takes 100 bytes at most"):
        read(tmp_path / "file", max_bytes=100)
    assert len(read(tmp_path / "file", max_bytes=len(whole))) == len(ARRAYS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EdgeError, match="is no regular file"):
        read(tmp_path / "pipe")
