"""One file in the place of another: each operation failed, and each state of a power cut."""

import errno
import os
from pathlib import Path

import pytest
from scripted_disks import FailingDisk, RecordingDisk
from trust_rows import Cases

from qwen_edge.errors import ResourceError, UsageError
from qwen_edge.runtime.files.replacing import replace_content, write_atomically
from qwen_edge.runtime.files.writing import using_disk

OLD, NEW = b"old" * 500_000, b"new" * 700_000  # more than is written at once
EARLIER = pytest.mark.parametrize("has_earlier", [True, False], ids=["earlier", "nothing"])


@EARLIER
@pytest.mark.trust("T-EXP-04", "T-EXP-06")
def test_each_operation_made_to_fail(has_earlier: bool, tmp_path: Path, cases: Cases) -> None:
    path = tmp_path / "a"
    number = 0
    while True:
        number += 1
        if has_earlier:
            path.write_bytes(OLD)
        else:
            path.unlink(missing_ok=True)
        disk = FailingDisk(number, OSError(errno.ENOSPC, "full"), lasting=True)
        failed = False
        with using_disk(disk):
            try:
                write_atomically(path, lambda stream: stream.write(NEW))
            except ResourceError as error:
                assert "filled up" in error.problem
                failed = True
        found = path.read_bytes() if path.exists() else None
        before = OLD if has_earlier else None
        # The last sync confirms the name, not the bytes: the new file may be there already.
        allowed = {before, NEW} if disk.struck == ("sync", tmp_path.name) else {before}
        assert found in allowed if failed else found == NEW
        assert [entry.name for entry in tmp_path.iterdir()] == ["a"] * (found is not None)
        if disk.struck is None:
            break
    assert number > 6
    cases(number - 1, claim="failed")


@EARLIER
@pytest.mark.trust("T-EXP-02")
def test_each_state_that_a_power_cut_could_leave(
    has_earlier: bool, tmp_path: Path, cases: Cases
) -> None:
    path = tmp_path / "a"
    if has_earlier:
        path.write_bytes(OLD)
    disk = RecordingDisk(tmp_path)
    with using_disk(disk):
        replace_content(path, NEW)
    found = [tree.get("a") for _, tree in disk.states]
    assert list(dict.fromkeys(found)) == [OLD if has_earlier else None, NEW]
    assert found[-1] == NEW
    cases(len(found), claim="crashed")


def test_without_waiting_for_the_disk_a_power_cut_may_leave_an_empty_file(tmp_path: Path) -> None:
    """Which is why only what is checked when it is read is written in this way."""
    disk = RecordingDisk(tmp_path)
    with using_disk(disk):
        replace_content(tmp_path / "a", NEW, durable=False)
    assert {tree.get("a") for _, tree in disk.states} > {None, NEW, b""}
    assert (tmp_path / "a").read_bytes() == NEW


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        write_atomically(tmp_path / "no" / "a", lambda stream: stream.write(b"x"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_long_ago_is_removed(tmp_path: Path) -> None:
    for age, name in ((7200, ".a.0123abcd.partial"), (1, ".a.89abcdef.partial")):
        (tmp_path / name).write_bytes(b"half")
        stamp = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (stamp, stamp))
    replace_content(tmp_path / "a", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.89abcdef.partial", "a"]
