"""Headers and indexes of strangers: every lie is found before a weight is read."""

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import CheckpointError
from qwen_edge.export.tensor_files import INDEX_FILE, SINGLE_FILE, list_tensors, read_header

EIGHT = np.arange(8, dtype="<f4").reshape(2, 4)
ENTRY = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}


def write_raw(path: Path, header: bytes | str | object, data: bytes = b"\0" * 32) -> Path:
    """Write a safetensors file from a header of any kind."""
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def write_index(folder: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / INDEX_FILE).write_text(text, encoding="utf-8")
    return folder


def test_places_of_a_single_file(tmp_path: Path, write_tensors: Callable[..., None]) -> None:
    write_tensors(tmp_path / SINGLE_FILE, {"a": ("F32", EIGHT), "b": ("BF16", EIGHT.astype("<u2"))})
    entries = list_tensors(tmp_path)
    assert {n: (e.dtype, e.shape, e.size_bytes) for n, e in entries.items()} == {
        "a": ("F32", (2, 4), 32),
        "b": ("BF16", (2, 4), 16),
    }
    content = (tmp_path / SINGLE_FILE).read_bytes()
    start = entries["a"].offset_bytes
    assert content[start : start + 32] == EIGHT.tobytes()
    assert entries["b"].offset_bytes == start + 32


def test_places_of_shards(tmp_path: Path, write_tensors: Callable[..., None]) -> None:
    write_tensors(tmp_path / "one.safetensors", {"a": ("F32", EIGHT)})
    write_tensors(tmp_path / "two.safetensors", {"b": ("F32", EIGHT)})
    write_index(tmp_path, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    assert {n: e.path.name for n, e in list_tensors(tmp_path).items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def test_an_index_may_name_the_single_file(
    tmp_path: Path, write_tensors: Callable[..., None]
) -> None:
    write_tensors(tmp_path / SINGLE_FILE, {"a": ("F32", EIGHT)})
    write_index(tmp_path, {"weight_map": {"a": SINGLE_FILE}})
    assert set(list_tensors(tmp_path)) == {"a"}


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither 'model.safetensors' nor") as caught:
        list_tensors(tmp_path)
    assert "save_pretrained" in caught.value.fix


@pytest.mark.trust("T-IN-01")
def test_two_models_in_one_folder_are_refused(
    tmp_path: Path, write_tensors: Callable[..., None]
) -> None:
    """Transformers reads the single file, others the index: a fine-tune saved over its base."""
    write_tensors(tmp_path / SINGLE_FILE, {"a": ("F32", EIGHT)})
    write_tensors(tmp_path / "one.safetensors", {"a": ("F32", EIGHT + 1)})
    write_index(tmp_path, {"weight_map": {"a": "one.safetensors"}})
    with pytest.raises(CheckpointError, match=r"Programs differ") as caught:
        list_tensors(tmp_path)
    assert "out of date" in caught.value.fix


BROKEN_FILES: dict[str, bytes] = {
    "empty": b"",
    "seven-bytes": b"\x10\0\0\0\0\0\0",
    "header-of-zero": struct.pack("<Q", 0),
    "header-of-2-to-the-40": struct.pack("<Q", 1 << 40) + b"{}      ",
    "header-of-2-to-the-64": b"\xff" * 16,
    "header-of-100-mb": struct.pack("<Q", 100_000_000) + b"{}",
    "header-longer-than-file": struct.pack("<Q", 1_000) + b"{}",
    "not-json": struct.pack("<Q", 8) + b"hello!!!",
    "not-utf8": struct.pack("<Q", 8) + b"\xff\xfe{}\0\0\0\0",
    "a-list": struct.pack("<Q", 8) + b"[1,2,3] ",
    "nested-deeply": struct.pack("<Q", 400_000) + b"[" * 200_000 + b"]" * 200_000,
}


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
@pytest.mark.trust("T-IN-05")
def test_files_that_are_no_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / SINGLE_FILE
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"'model.safetensors' is not a whole") as caught:
        list_tensors(tmp_path)
    assert time.monotonic() - started < 1.0
    assert f"{len(content):,} bytes" in caught.value.problem
    assert caught.value.fix == "fetch or save this file again"


LYING_HEADERS: dict[str, object] = {
    "end-beyond-the-file": {"a": ENTRY | {"data_offsets": [0, 64], "shape": [4, 4]}},
    "begin-after-end": {"a": ENTRY | {"data_offsets": [32, 0]}},
    "negative-offset": {"a": ENTRY | {"data_offsets": [-32, 0]}},
    "offsets-do-not-fit-the-shape": {"a": ENTRY | {"shape": [2, 3]}},
    "overlapping": {
        "a": ENTRY | {"shape": [4], "data_offsets": [0, 16]},
        "b": ENTRY | {"shape": [6], "data_offsets": [8, 32]},
    },
    "a-hole": {
        "a": ENTRY | {"shape": [2], "data_offsets": [0, 8]},
        "b": ENTRY | {"shape": [2], "data_offsets": [24, 32]},
    },
    "more-data-than-tensors": {"a": ENTRY | {"shape": [2], "data_offsets": [0, 8]}},
    "shape-overflows": {"a": ENTRY | {"shape": [1 << 63, 2]}},
    "negative-shape": {"a": ENTRY | {"shape": [-2, -4]}},
    "unknown-dtype": {"a": ENTRY | {"dtype": "F33"}},
    "no-offsets": {"a": {"dtype": "F32", "shape": [2, 4]}},
    "twice": '{"a": ENTRY, "a": ENTRY}'.replace("ENTRY", json.dumps(ENTRY)),
    "twice-within": json.dumps({"a": ENTRY}).replace('"dtype":', '"dtype": "F16", "dtype":'),
}


@pytest.mark.parametrize("header", LYING_HEADERS.values(), ids=LYING_HEADERS.keys())
@pytest.mark.trust("T-IN-06", "T-IN-07", "T-IN-08")
def test_headers_that_lie(header: object, tmp_path: Path) -> None:
    path = write_raw(tmp_path / SINGLE_FILE, header)
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file"):
        list(read_header(path))


@pytest.mark.trust("T-IN-08")
def test_many_repeated_names_take_no_time(tmp_path: Path) -> None:
    """Counting each name's repeats took minutes for a header of 100,000 names (here: 30,000)."""
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    names = [f'"{index}": {entry}' for index in range(30_000)]
    path = write_raw(tmp_path / SINGLE_FILE, "{" + ",".join([*names, names[-1]]) + "}", b"")
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"'29999' stands there twice"):
        list(read_header(path))
    assert time.monotonic() - started < 5.0


@pytest.mark.trust("T-IN-09")
def test_a_bloated_header_is_not_parsed(tmp_path: Path) -> None:
    """The format allows 100 MB, which would take a gigabyte to parse."""
    header = json.dumps({"a": ENTRY}).encode().ljust(16_000_001)
    path = write_raw(tmp_path / SINGLE_FILE, header)
    with pytest.raises(CheckpointError, match=r"claims 16,000,001 bytes, more than 16,000,000"):
        list(read_header(path))
    header = header[:-1]
    assert [entry.name for entry in read_header(write_raw(path, header))] == ["a"]


@pytest.mark.trust("T-IN-01")
@pytest.mark.parametrize("change", [-1, -33, 1, 1_000])
def test_a_file_of_another_length_is_told_with_both(
    change: int, tmp_path: Path, write_tensors: Callable[..., None]
) -> None:
    path = tmp_path / SINGLE_FILE
    write_tensors(path, {"a": ("F32", EIGHT)})
    size = path.stat().st_size
    path.write_bytes((path.read_bytes() + bytes(max(change, 0)))[: size + change])
    if change == -33:  # the header itself is cut
        with pytest.raises(CheckpointError, match=rf"It has {size - 33:,} bytes"):
            list_tensors(tmp_path)
        return
    told = (
        rf"'model.safetensors' .* its header describes {size:,} bytes\. It has {size + change:,} b"
    )
    with pytest.raises(CheckpointError, match=told):
        list_tensors(tmp_path)


OUTSIDE = (
    "../other.safetensors",
    "/etc/passwd",
    "a/../../b",
    "sub/model.safetensors",
    "..\\other.safetensors",
    "C:\\other.safetensors",
    "C:other.safetensors",
    "\\\\server\\share",
    "..",
    ".",
    "",
    "nul\0byte",
    "x" * 5_000 + "/",
)


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: repr(name)[:24])
@pytest.mark.trust("T-IN-03")
def test_an_index_that_leaves_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "other.safetensors").write_bytes(b"secret")
    write_index(folder, {"weight_map": {"a": name}})
    with pytest.raises(CheckpointError, match=r"points outside its folder") as caught:
        list_tensors(folder)
    assert len(caught.value.problem) < 1_000
    assert "do not use" in caught.value.fix


@pytest.mark.trust("T-IN-01")
def test_all_missing_shards_in_one_error(
    tmp_path: Path, write_tensors: Callable[..., None]
) -> None:
    write_tensors(tmp_path / "one.safetensors", {"a": ("F32", EIGHT)})
    names = ["one.safetensors", "two.safetensors", "three.safetensors"]
    write_index(tmp_path, {"weight_map": dict(zip("abc", names, strict=True))})
    with pytest.raises(CheckpointError, match=r"2 of 3 shards") as caught:
        list_tensors(tmp_path)
    assert "two.safetensors" in caught.value.problem
    assert "three.safetensors" in caught.value.problem


@pytest.mark.trust("T-IN-03")
def test_names_that_no_system_could_have(tmp_path: Path) -> None:
    for name in ("\ud800.safetensors", "x" * 5_000):
        write_index(tmp_path, json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match=r"1 of 1 shards") as caught:
            list_tensors(tmp_path)
        assert len(caught.value.problem) < 1_000


BAD_INDEXES: dict[str, Any] = {
    "not-json": "{",
    "a-list": [],
    "no-map": {"metadata": {}},
    "empty-map": {"weight_map": {}},
    "map-of-numbers": {"weight_map": {"a": 5}},
    "map-is-a-list": {"weight_map": ["a"]},
    "twice": '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
    "nested-deeply": "[" * 200_000,
}


@pytest.mark.parametrize("content", BAD_INDEXES.values(), ids=BAD_INDEXES.keys())
@pytest.mark.trust("T-IN-08", "T-IN-10")
def test_indexes_without_a_map(content: object, tmp_path: Path) -> None:
    write_index(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"no readable 'weight_map'"):
        list_tensors(tmp_path)


@pytest.mark.trust("T-IN-01")
def test_index_and_shards_that_contradict_each_other(
    tmp_path: Path, write_tensors: Callable[..., None]
) -> None:
    write_tensors(tmp_path / "one.safetensors", {"a": ("F32", EIGHT)})
    write_tensors(tmp_path / "two.safetensors", {"b": ("F32", EIGHT)})
    write_index(
        tmp_path,
        {"weight_map": {"a": "two.safetensors", "b": "two.safetensors", "c": "one.safetensors"}},
    )
    with pytest.raises(CheckpointError, match=r"2 tensors are not in the shard") as caught:
        list_tensors(tmp_path)
    assert caught.value.facts["tensors"] == ["a", "c"]


@pytest.mark.trust("T-IN-08")
def test_one_tensor_in_two_shards(tmp_path: Path, write_tensors: Callable[..., None]) -> None:
    write_tensors(tmp_path / "one.safetensors", {"a": ("F32", EIGHT)})
    write_tensors(tmp_path / "two.safetensors", {"a": ("F32", EIGHT), "b": ("F32", EIGHT)})
    write_index(tmp_path, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    with pytest.raises(CheckpointError, match=r"'a' stands in 'one.safetensors' as well"):
        list_tensors(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("name", [SINGLE_FILE, INDEX_FILE, "one.safetensors"])
@pytest.mark.trust("T-IN-04")
def test_a_pipe_does_not_block(name: str, tmp_path: Path) -> None:
    if name == "one.safetensors":
        write_index(tmp_path, {"weight_map": {"a": name}})
    os.mkfifo(tmp_path / name)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"not a regular file"):
        list_tensors(tmp_path)
    assert time.monotonic() - started < 1.0


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
@pytest.mark.trust("T-IN-04")
def test_links_to_devices_and_folders(tmp_path: Path) -> None:
    for place in ("/dev/zero", str(tmp_path)):
        (tmp_path / SINGLE_FILE).symlink_to(place)
        with pytest.raises(CheckpointError, match=r"not a regular file"):
            list_tensors(tmp_path)
        (tmp_path / SINGLE_FILE).unlink()
