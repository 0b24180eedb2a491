"""A package on disk: every damage to every file is found and named."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edge.errors import PackageError
from qwen_edge.runtime.files.opening import open_inside
from qwen_edge.runtime.manifest import MANIFEST_NAME, FileFacts, Manifest
from qwen_edge.runtime.package import (
    check_report,
    check_sizes,
    hash_file,
    package_hash,
    read_manifest,
    verify_package,
    write_manifest,
)

SAMPLE = Manifest.from_bytes((Path(__file__).parents[1] / "data" / "manifest.json").read_bytes())
NAMES = sorted(SAMPLE.files)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A sealed package whose files are small and all different."""
    folder = tmp_path / "my päckage 测试"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(f"contents of {name}".encode() * 3)
    files = {name: hash_file(folder / name) for name in NAMES}
    write_manifest(folder, dataclasses.replace(SAMPLE, files=files))
    return folder


def test_sealed_package_is_intact(package: Path) -> None:
    seen: list[int] = []
    report = verify_package(package, seen.append)
    assert report.is_intact
    assert report.problems == ()
    assert report.num_files == len(NAMES) + 1
    assert sum(seen) + (package / MANIFEST_NAME).stat().st_size == report.num_bytes
    assert report.package_hash == package_hash(package)
    check_report(report)
    check_sizes(package, read_manifest(package))


def flip(path: Path) -> None:
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 1
    path.write_bytes(text)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def swap(path: Path) -> None:
    other = path.with_name("LICENSE" if path.name != "LICENSE" else "README.md")
    path.write_bytes(other.read_bytes() + b"!")


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed.json"))


DAMAGES: list[Callable[[Path], None]] = [flip, cut, empty, grow, swap, rename, Path.unlink]


@pytest.mark.trust("T-PKG-02")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_to_every_file_is_named_with_both_hashes(
    package: Path, damage: Callable[[Path], None]
) -> None:
    for name, sealed in read_manifest(package).files.items():
        text = (package / name).read_bytes()
        damage(package / name)
        report = verify_package(package)
        assert not report.is_intact
        with pytest.raises(PackageError) as caught:
            check_report(report)
        assert caught.value.exit_code == 3
        assert repr(name) in caught.value.problem
        if (package / name).exists():
            assert hash_file(package / name).sha256 in caught.value.problem
            assert sealed.sha256 in caught.value.problem
        else:
            assert report.missing == (name,)
        (package / name).write_bytes(text)
        (package / "renamed.json").unlink(missing_ok=True)
    assert verify_package(package).is_intact


@pytest.mark.parametrize("damage", [cut, empty, grow, rename, Path.unlink])
def test_sizes_alone_find_all_but_changed_bytes(
    package: Path, damage: Callable[[Path], None]
) -> None:
    manifest = read_manifest(package)
    damage(package / "openvino_model.bin")
    with pytest.raises(PackageError, match=r"'openvino_model\.bin'"):
        check_sizes(package, manifest)


def test_size_problem_names_both_sizes(package: Path) -> None:
    cut(package / "LICENSE")
    size = (package / "LICENSE").stat().st_size
    with pytest.raises(PackageError, match=f"cut off at {size} bytes, expected {size + 1}"):
        check_sizes(package, read_manifest(package))


@pytest.mark.trust("T-PKG-03")
@pytest.mark.parametrize("name", ["openvino_extension.so", "x.py", ".env", "sub"])
def test_extra_file_is_refused(package: Path, name: str) -> None:
    if name == "sub":
        (package / name).mkdir()
    else:
        (package / name).write_bytes(b"x")
    assert verify_package(package).extra == (name,)
    with pytest.raises(PackageError, match="is not listed in the manifest") as caught:
        check_sizes(package, read_manifest(package))
    assert "move files that are not listed out of it" in caught.value.fix


def test_what_file_managers_and_git_leave_is_passed_over(package: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".gitattributes"):
        (package / name).write_bytes(b"x")
    for name in (".git", ".cache"):
        (package / name).mkdir()
    assert verify_package(package).is_intact
    check_sizes(package, read_manifest(package))


@pytest.mark.trust("T-PKG-02")
def test_symlink_is_refused_even_to_the_right_bytes(package: Path) -> None:
    target = package.parent / "elsewhere"
    (package / "LICENSE").rename(target)
    try:
        (package / "LICENSE").symlink_to(target)
    except OSError:
        pytest.skip("this system lets only administrators make symbolic links")
    assert "symbolic link" in verify_package(package).irregular[0][1]
    with pytest.raises(PackageError, match="symbolic link"):
        open_inside(package, "LICENSE")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_pipe_is_refused_without_waiting_for_a_writer(package: Path) -> None:
    (package / "LICENSE").unlink()
    os.mkfifo(package / "LICENSE")
    assert "pipe" in verify_package(package).irregular[0][1]
    with pytest.raises(PackageError, match="pipe"):
        check_sizes(package, read_manifest(package))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_manifest_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_NAME)
    with pytest.raises(PackageError, match="pipe"):
        read_manifest(tmp_path)


def test_huge_manifest_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST_NAME).open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(PackageError, match=r"1,099\.5 GB, more than any manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../x.json", "a/b.json", "C:x", "missing.json", "x.so"])
def test_open_inside_stays_inside(package: Path, name: str) -> None:
    (package.parent / "x.json").write_bytes(b"outside")
    with pytest.raises(PackageError):
        open_inside(package, name)


def test_open_inside_returns_the_path(package: Path) -> None:
    assert open_inside(package, "LICENSE") == package / "LICENSE"


@pytest.mark.trust("T-PKG-01")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "the folder is empty"),
        (["model.safetensors"], "it holds a checkpoint, which must be exported first"),
        (["openvino_model.xml"], "an OpenVINO model of another tool"),
        (["a.txt", "b.txt"], "found 2 other files there, such as 'a.txt'"),
    ],
    ids=["empty", "checkpoint", "openvino", "other"],
)
def test_folder_that_is_no_package_says_what_it_is(
    tmp_path: Path, files: list[str], expected: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(PackageError) as caught:
        read_manifest(tmp_path)
    assert "'manifest.json' is missing" in caught.value.problem
    assert expected in caught.value.problem
    assert "qwen-edge export" in caught.value.fix


@pytest.mark.trust("T-PKG-01")
def test_missing_folder_and_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="There is no folder"):
        read_manifest(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PackageError, match="is a file; a model package is a folder"):
        read_manifest(tmp_path / "file")


def test_hash_of_a_file_longer_than_the_buffer(tmp_path: Path) -> None:
    """Two reads: the digest must not take stale bytes of the first into the second."""
    path = tmp_path / "long"
    path.write_bytes(b"a" * (4 << 20) + b"b")
    facts = hash_file(path)
    assert facts == FileFacts(
        4194305, "40835df3fcc2f431895f967af9e2048a88718f9db105c7b9e350df9f572a956d"
    )


def test_package_hash_changes_with_the_manifest(package: Path) -> None:
    before = package_hash(package)
    write_manifest(package, dataclasses.replace(read_manifest(package), name="other"))
    assert package_hash(package) != before
