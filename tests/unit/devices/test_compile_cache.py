"""The folder for what a device's compiler made: only what was found good once is left in it."""

import os
import time
from pathlib import Path

import pytest

from qwen_edge.runtime.devices.compile_cache import (
    discard_cache_folder,
    prepare_cache_folder,
    seal_cache_folder,
)

PACKAGE = "0123456789abcdef" * 4
FACTS = {"driver": "1", "openvino": "2026.4.1"}


def prepare(tmp_path: Path, **changes: str) -> Path:
    folder = prepare_cache_folder(tmp_path, PACKAGE, "NPU", {**FACTS, **changes})
    assert folder is not None
    return folder


def write_blob(folder: Path, name: str = "1.blob", content: bytes = b"compiled") -> Path:
    path = folder / name
    path.write_bytes(content)
    path.chmod(0o440)  # as the engine does
    return path


def compile_into(folder: Path, name: str = "1.blob") -> Path:
    """Do as a good compilation does; return the folder with the name that it then has."""
    write_blob(folder, name)
    seal_cache_folder(folder)
    return folder.with_name(folder.name[1:33])


def test_what_was_sealed_stays(tmp_path: Path) -> None:
    folder = compile_into(prepare(tmp_path))
    assert prepare(tmp_path) == folder
    assert (folder / "1.blob").read_bytes() == b"compiled"
    seal_cache_folder(folder)
    discard_cache_folder(folder)
    assert prepare(tmp_path) == folder


@pytest.mark.trust("T-PKG-10")
@pytest.mark.parametrize(
    "change", ["one byte", "cut off", "never sealed", "a file more", "list lost", "list broken"]
)
def test_what_is_not_as_it_was_sealed_is_made_again(tmp_path: Path, change: str) -> None:
    """The engine loads a damaged file, and computes something else."""
    private = prepare(tmp_path)
    if change == "never sealed":
        write_blob(private)
        assert list(prepare(tmp_path).iterdir()) == []
        return
    folder = compile_into(private)
    blob = folder / "1.blob"
    blob.chmod(0o600)
    if change == "one byte":
        blob.write_bytes(b"compilet")
    elif change == "cut off":
        blob.write_bytes(b"comp")
    elif change == "a file more":
        write_blob(folder, "2.blob")
    elif change == "list lost":
        (folder / "files.json").unlink()
    elif change == "list broken":
        (folder / "files.json").write_bytes(b'["1.blob"]')
    blob.chmod(0o440)
    again = prepare(tmp_path)
    assert again != folder and list(again.iterdir()) == []
    assert compile_into(again) == folder
    assert prepare(tmp_path) == folder
    assert blob.read_bytes() == b"compiled"


@pytest.mark.trust("T-PKG-12")
def test_who_compiles_at_the_same_time_writes_elsewhere(tmp_path: Path) -> None:
    """OpenVINO writes over a file that another process has mapped, which ends that process."""
    first, second = prepare(tmp_path), prepare(tmp_path)
    assert first != second
    folder = compile_into(first)
    number = (folder / "1.blob").stat().st_ino
    compile_into(second)
    assert (folder / "1.blob").stat().st_ino == number
    assert list(folder.parent.iterdir()) == [folder]


def test_what_went_wrong_or_was_abandoned_is_removed(tmp_path: Path) -> None:
    failed, killed = prepare(tmp_path), prepare(tmp_path)
    for folder in (failed, killed):
        write_blob(folder)
    discard_cache_folder(failed)
    assert not failed.exists()
    then = time.time() - 2 * 86_400
    os.utime(killed, (then, then))
    prepare(tmp_path)
    assert not killed.exists()


@pytest.mark.trust("T-PKG-11", "T-PKG-13")
def test_another_driver_has_a_folder_of_its_own_and_old_ones_go(tmp_path: Path) -> None:
    folders = []
    for number in range(5):
        folder = compile_into(prepare(tmp_path, driver=str(number)))
        os.utime(folder, (number, number))
        folders.append(folder)
    assert len(set(folders)) == 5
    newest = compile_into(prepare(tmp_path, driver="5"))
    left = sorted(newest.parent.iterdir())
    assert left == sorted([newest, folders[4], folders[3]])


@pytest.mark.trust("T-PKG-13")
def test_fifty_packages_do_not_fill_the_disk(tmp_path: Path) -> None:
    folders = []
    for number in range(50):
        package = f"{number:064}"[::-1]
        private = prepare_cache_folder(tmp_path, package, "NPU", FACTS)
        assert private is not None
        folders.append(compile_into(private))
        os.utime(folders[-1].parent, (number, number))
    left = [folder for folder in folders if folder.exists()]
    assert left == folders[-16:]


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_devices_that_need_none_get_none(tmp_path: Path, device: str) -> None:
    assert prepare_cache_folder(tmp_path, PACKAGE, device, FACTS) is None


@pytest.mark.trust("T-PKG-12")
def test_without_a_usable_place_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert prepare_cache_folder(None, PACKAGE, "NPU", FACTS) is None
    (tmp_path / "file").write_bytes(b"")
    assert prepare_cache_folder(tmp_path / "file", PACKAGE, "NPU", FACTS) is None
    assert "cannot be kept" in caplog.text
    for after in (seal_cache_folder, discard_cache_folder):
        after(None)
        after(tmp_path / "gone")
        after(tmp_path / ".gone.partial")
