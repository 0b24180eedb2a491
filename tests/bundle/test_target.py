"""Where a bundle may go, and that an interruption leaves nothing half-written."""

import contextlib
import errno
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from scripted_disks import FailingDisk
from trust_rows import Cases

from qwen_edge.bundle.sums import SUMS_NAME, write_sums
from qwen_edge.bundle.target import (
    FACTS_NAME,
    FORMAT,
    check_space,
    check_target,
    publish,
    stage,
    zip_of,
)
from qwen_edge.errors import OutputFolderError, ResourceError
from qwen_edge.runtime.files.writing import make_folder, using_disk, write_text


def make_earlier(target: Path, content: str = "old") -> None:
    target.mkdir()
    (target / FACTS_NAME).write_text(json.dumps({"format": FORMAT}))
    (target / "file").write_text(content)
    write_sums(target)


def test_free_and_empty_places_are_taken(tmp_path: Path) -> None:
    check_target(tmp_path / "new", force=False, as_zip=True)
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", force=False, as_zip=True)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_ours_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("precious")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / FACTS_NAME).write_text('{"format": "another"}')
    make_earlier(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    for name in ("file", "folder", "web", "link"):
        with pytest.raises(OutputFolderError, match="not even with --force"):
            check_target(tmp_path / name, force=force, as_zip=False)
    with pytest.raises(OutputFolderError, match="does not exist"):
        check_target(tmp_path / "no" / "such", force=force, as_zip=False)


def test_an_earlier_bundle_is_replaced_when_asked(tmp_path: Path) -> None:
    make_earlier(tmp_path / "app")
    with pytest.raises(OutputFolderError, match="--force"):
        check_target(tmp_path / "app", force=False, as_zip=False)
    check_target(tmp_path / "app", force=True, as_zip=False)
    (tmp_path / "app" / "notes.txt").write_text("mine")
    with pytest.raises(OutputFolderError, match=r"'notes\.txt', which would be lost"):
        check_target(tmp_path / "app", force=True, as_zip=False)


def test_a_zip_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "app"
    with zipfile.ZipFile(zip_of(target), "w") as archive:
        archive.writestr("photos/1.jpg", "x")
    check_target(target, force=True, as_zip=False)
    with pytest.raises(OutputFolderError, match="not even with --force"):
        check_target(target, force=True, as_zip=True)
    with zipfile.ZipFile(zip_of(target), "w") as archive:
        archive.writestr(f"app/{FACTS_NAME}", "{}")
    with pytest.raises(OutputFolderError, match="already holds"):
        check_target(target, force=False, as_zip=True)
    check_target(target, force=True, as_zip=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interruption_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    make_earlier(tmp_path / "app")
    with pytest.raises(error), stage(tmp_path / "app") as folder:
        (folder / "half").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["app"]
    assert (tmp_path / "app" / "file").read_text() == "old"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".app.partial" / "deep").mkdir(parents=True)
    (tmp_path / ".app.partial" / "deep" / "file").write_text("half")
    make_earlier(tmp_path / ".app.replaced")
    with stage(tmp_path / "app") as folder:
        assert list(folder.iterdir()) == []
        assert (tmp_path / "app" / "file").read_text() == "old"  # it had been moved away
        (folder / "file").write_text("new")
        (folder / FACTS_NAME).write_text(json.dumps({"format": FORMAT}))
        publish(folder, tmp_path / "app")
    assert [path.name for path in tmp_path.iterdir()] == ["app"]
    assert (tmp_path / "app" / "file").read_text() == "new"


@pytest.mark.trust("T-EXP-06")
def test_a_disk_that_fails_at_any_step_leaves_the_old_one(tmp_path: Path, cases: Cases) -> None:
    number = 0
    while True:
        number += 1
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
        make_earlier(tmp_path / "app")
        disk = FailingDisk(number, OSError(errno.EIO, "broken"))
        with using_disk(disk), contextlib.suppress(OSError), stage(tmp_path / "app") as folder:
            make_folder(folder / "deep")
            write_text(folder / "deep" / "file", "new")
            write_text(folder / FACTS_NAME, json.dumps({"format": FORMAT}))
            publish(folder, tmp_path / "app")
        is_new = (tmp_path / "app" / "deep" / "file").is_file()
        expected = {"deep", "deep/file"} if is_new else {"file", SUMS_NAME}
        assert set(list_tree(tmp_path / "app")) == {FACTS_NAME, *expected}, disk.struck
        if disk.struck is None:
            break
    assert is_new
    assert number > 12
    cases(number - 1, claim="failed")


def list_tree(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def test_two_at_once_are_kept_apart(tmp_path: Path) -> None:
    with (
        stage(tmp_path / "app") as folder,
        pytest.raises(OutputFolderError, match="Another process"),
        stage(tmp_path / "app"),
    ):
        pass
    assert not folder.exists()


def test_space_is_looked_at_first(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(ResourceError, match="of free disk"):
        check_space(tmp_path, 1 << 60)
