"""Records: what was found out holds while nothing it depends on has changed."""

import dataclasses
import os
import time
from pathlib import Path

import pytest

from qwen_edge.errors import PackageError
from qwen_edge.runtime.records import (
    Record,
    is_recorded,
    read_finding,
    read_stamps,
    write_record,
)

OLD_NS = time.time_ns() - 60 * 10**9


@pytest.fixture
def record(tmp_path: Path) -> Record:
    folder = tmp_path / "some földer"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(name.encode())
        os.utime(folder / name, ns=(OLD_NS, OLD_NS))
    return Record("checks", folder, {"version": "1"}, read_stamps(folder, ("a", "b")))


def test_record_holds_for_its_own_facts_files_and_key(record: Record, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    assert not is_recorded(record, cache_dir)
    write_record(record, cache_dir)
    assert is_recorded(record, cache_dir)
    for change in ({"facts": {"version": "2"}}, {"key": "other"}, {"kind": "others"}):
        assert not is_recorded(dataclasses.replace(record, **change), cache_dir)  # type: ignore[arg-type]
    (record.folder / "b").write_bytes(b"c")
    changed = dataclasses.replace(record, stamps=read_stamps(record.folder, ("a", "b")))
    assert not is_recorded(changed, cache_dir)


def test_a_finding_comes_back_with_its_record(record: Record, tmp_path: Path) -> None:
    assert read_finding(record, tmp_path) is None
    write_record(record, tmp_path)
    assert read_finding(record, tmp_path) == {}
    write_record(record, tmp_path, {"problem": "it aborts — always"})
    assert read_finding(record, tmp_path) == {"problem": "it aborts — always"}
    assert is_recorded(record, tmp_path)
    other = dataclasses.replace(record, facts={"version": "2"})
    assert read_finding(other, tmp_path) is None


@pytest.mark.parametrize("text", [b"", b"[]", b'{"finding": 1}', b"\xff"])
def test_a_broken_record_says_nothing(record: Record, tmp_path: Path, text: bytes) -> None:
    write_record(record, tmp_path)
    record.path(tmp_path).write_bytes(text)
    assert read_finding(record, tmp_path) is None


def test_records_of_other_keys_live_side_by_side(record: Record, tmp_path: Path) -> None:
    other = dataclasses.replace(record, key="other")
    write_record(record, tmp_path)
    write_record(other, tmp_path)
    assert is_recorded(record, tmp_path)
    assert is_recorded(other, tmp_path)
    assert len(list((tmp_path / "checks").iterdir())) == 2


def test_without_a_cache_folder_nothing_is_remembered(record: Record) -> None:
    write_record(record, None)
    assert not is_recorded(record, None)


def test_file_that_is_missing_is_named(record: Record) -> None:
    with pytest.raises(PackageError, match="'c' is missing"):
        read_stamps(record.folder, ("a", "c"))
