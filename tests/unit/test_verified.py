"""The record of a full check: it saves time and never hides a change."""

import dataclasses
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from qwen_edge.errors import PackageError
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import check_sizes, hash_file, read_manifest, write_manifest
from qwen_edge.runtime.verified import check_verified

SAMPLE = Manifest.from_bytes((Path(__file__).parents[1] / "data" / "manifest.json").read_bytes())
OLD_NS = time.time_ns() - 60 * 10**9


def make_old(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, ns=(OLD_NS, OLD_NS))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A sealed package that was not written just now."""
    folder = tmp_path / "package"
    folder.mkdir()
    for name in SAMPLE.files:
        (folder / name).write_bytes(name.encode())
    files = {name: hash_file(folder / name) for name in SAMPLE.files}
    write_manifest(folder, dataclasses.replace(SAMPLE, files=files))
    make_old(folder)
    return folder


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def was_hashed(folder: Path, cache_dir: Path | None) -> bool:
    return check_verified(folder, read_manifest(folder), cache_dir=cache_dir)


@pytest.mark.trust("T-PKG-04")
def test_second_load_does_not_hash(package: Path, cache_dir: Path) -> None:
    assert was_hashed(package, cache_dir)
    assert not was_hashed(package, cache_dir)
    assert was_hashed(package, None)


def test_changed_time_means_hashing_again(package: Path, cache_dir: Path) -> None:
    was_hashed(package, cache_dir)
    os.utime(package / "LICENSE", ns=(OLD_NS + 1, OLD_NS + 1))
    assert was_hashed(package, cache_dir)
    assert not was_hashed(package, cache_dir)


@pytest.mark.trust("T-PKG-04")
def test_copy_with_kept_times_at_the_same_path_is_hashed(package: Path, cache_dir: Path) -> None:
    """Found in review: size and time were all that was remembered, and a copy keeps both."""
    was_hashed(package, cache_dir)
    copy = package.with_name("copy")
    shutil.copytree(package, copy)
    (copy / "openvino_model.bin").write_bytes(b"openvino_model.biN")
    make_old(copy)
    shutil.rmtree(package)
    copy.rename(package)
    with pytest.raises(PackageError, match=r"'openvino_model\.bin' has other contents"):
        was_hashed(package, cache_dir)


def test_changed_bytes_of_equal_length_are_found(package: Path, cache_dir: Path) -> None:
    was_hashed(package, cache_dir)
    (package / "openvino_model.bin").write_bytes(b"Openvino_model.bin")
    with pytest.raises(PackageError, match=r"'openvino_model\.bin' has other contents"):
        was_hashed(package, cache_dir)


def test_damaged_package_leaves_no_record(package: Path, cache_dir: Path) -> None:
    (package / "LICENSE").write_bytes(b"licensE")
    make_old(package)
    for _ in range(2):
        with pytest.raises(PackageError):
            was_hashed(package, cache_dir)
    assert not cache_dir.exists()


def test_new_manifest_at_the_same_path_means_hashing_again(package: Path, cache_dir: Path) -> None:
    was_hashed(package, cache_dir)
    manifest = read_manifest(package)
    renamed = manifest.name[::-1]  # as long as before, and the times are equal too
    write_manifest(package, dataclasses.replace(manifest, name=renamed))
    make_old(package)
    assert was_hashed(package, cache_dir)


def test_copy_elsewhere_is_hashed_itself(package: Path, cache_dir: Path, tmp_path: Path) -> None:
    was_hashed(package, cache_dir)
    moved = package.rename(tmp_path / "moved")
    assert was_hashed(moved, cache_dir)


def test_files_written_just_now_are_not_remembered(package: Path, cache_dir: Path) -> None:
    """A change within the file system's clock step would keep the recorded time."""
    os.utime(package / "LICENSE")
    assert was_hashed(package, cache_dir)
    assert was_hashed(package, cache_dir)
    assert not cache_dir.exists()


@pytest.mark.trust("T-PKG-12")
def test_cache_folder_that_is_a_file_only_costs_time(
    package: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_dir.write_bytes(b"")
    assert was_hashed(package, cache_dir)
    assert was_hashed(package, cache_dir)
    assert "cannot be remembered" in caplog.text


@pytest.mark.trust("T-PKG-04")
@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"\xff", b"null", b"{" * 9_999], ids=lambda text: repr(text[:4])
)
def test_damaged_record_means_hashing_again(package: Path, cache_dir: Path, text: bytes) -> None:
    was_hashed(package, cache_dir)
    records = list((cache_dir / "verified").iterdir())
    assert len(records) == 1
    records[0].write_bytes(text)
    assert was_hashed(package, cache_dir)
    assert not was_hashed(package, cache_dir)


def test_file_missing_at_load_is_named(package: Path, cache_dir: Path) -> None:
    manifest = read_manifest(package)
    (package / "LICENSE").unlink()
    with pytest.raises(PackageError, match="'LICENSE' is missing"):
        check_verified(package, manifest, cache_dir=cache_dir)


@pytest.mark.trust("T-PKG-04")
def test_the_quick_check_is_quick_and_the_full_one_tells_its_time(
    demo_package: Path, tmp_path: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What every load but the first costs, however large the files are: a look at each."""
    folder = Path(shutil.copytree(demo_package, tmp_path / "demo"))
    make_old(folder)
    manifest = read_manifest(folder)
    with caplog.at_level("INFO"):
        assert was_hashed(folder, cache_dir)
    assert re.search(r"Checked \d+ files of .* in \d+\.\d s", caplog.text)
    times_s = []
    for _ in range(5):
        started_s = time.perf_counter()
        assert not check_verified(folder, manifest, cache_dir=cache_dir)
        check_sizes(folder, manifest)
        times_s.append(time.perf_counter() - started_s)
    assert min(times_s) < 0.05
