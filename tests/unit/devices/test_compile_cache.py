"""The folder for what a device's compiler made: only what was found good once is left in it."""

import os
from pathlib import Path

import pytest

from qwen_edge.runtime.devices.compile_cache import prepare_cache_folder, seal_cache_folder

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


def test_what_was_sealed_stays(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    blob = write_blob(folder)
    seal_cache_folder(folder)
    assert prepare(tmp_path) == folder
    assert blob.read_bytes() == b"compiled"


@pytest.mark.parametrize(
    "change", ["one byte", "cut off", "never sealed", "list lost", "list broken"]
)
def test_what_is_not_as_it_was_sealed_is_deleted(tmp_path: Path, change: str) -> None:
    """The engine loads a damaged file, and computes something else."""
    folder = prepare(tmp_path)
    blob = write_blob(folder)
    if change != "never sealed":
        seal_cache_folder(folder)
    blob.chmod(0o600)
    if change == "one byte":
        blob.write_bytes(b"compilet")
    elif change == "cut off":
        blob.write_bytes(b"comp")
    elif change == "list lost":
        (folder / "files.json").unlink()
    elif change == "list broken":
        (folder / "files.json").write_bytes(b'["1.blob"]')
    blob.chmod(0o440)
    prepare(tmp_path)
    assert not blob.exists()


def test_another_driver_has_a_folder_of_its_own_and_old_ones_go(tmp_path: Path) -> None:
    folders = []
    for number in range(5):
        folder = prepare(tmp_path, driver=str(number))
        write_blob(folder)
        os.utime(folder, (number, number))
        folders.append(folder)
    assert len(set(folders)) == 5
    newest = prepare(tmp_path, driver="5")
    left = sorted(newest.parent.iterdir())
    assert left == sorted([newest, folders[4], folders[3]])


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_devices_that_need_none_get_none(tmp_path: Path, device: str) -> None:
    assert prepare_cache_folder(tmp_path, PACKAGE, device, FACTS) is None


def test_without_a_usable_place_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert prepare_cache_folder(None, PACKAGE, "NPU", FACTS) is None
    (tmp_path / "file").write_bytes(b"")
    assert prepare_cache_folder(tmp_path / "file", PACKAGE, "NPU", FACTS) is None
    assert "cannot be kept" in caplog.text
    seal_cache_folder(None)
    seal_cache_folder(tmp_path / "gone")
