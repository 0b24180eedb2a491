"""A package that gets a result: whole before, whole after, and whole at every step between."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from qwen_edge.errors import PackageError, ResourceError
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import (
    TUNED_NAME,
    check_sizes,
    hash_file,
    read_manifest,
    verify_package,
    write_manifest,
)
from qwen_edge.runtime.tuning import package_record
from qwen_edge.runtime.tuning.package_record import write_into_package
from qwen_edge.runtime.tuning.result import Tuned
from qwen_edge.runtime.tuning.stored import read_results


@pytest.fixture
def package(tmp_path: Path, manifest: Manifest) -> Path:
    """Return a package whose files hold their own names."""
    folder = tmp_path / "package"
    folder.mkdir()
    for name in manifest.files:
        (folder / name).write_text(name)
    files = {name: hash_file(folder / name) for name in manifest.files}
    write_manifest(folder, dataclasses.replace(manifest, files=files))
    return folder


def test_it_is_intact_afterwards_and_lists_the_result(package: Path, tuned: Tuned) -> None:
    before = read_manifest(package)
    write_into_package(package, tuned)
    after = read_manifest(package)
    assert verify_package(package).is_intact
    assert after.files.keys() - before.files.keys() == {TUNED_NAME}
    assert dataclasses.replace(after, files=before.files) == before
    assert read_results(package / TUNED_NAME) == (tuned,)
    assert {entry.name for entry in package.iterdir()} == {*after.files, "manifest.json"}


def test_results_of_other_machines_stay_and_older_ones_of_this_go(
    package: Path, tuned: Tuned
) -> None:
    other = dataclasses.replace(
        tuned, machine=dataclasses.replace(tuned.machine, num_logical_cores=999)
    )
    newer = dataclasses.replace(tuned, gain=2.0)
    for result in (tuned, other, newer):
        write_into_package(package, result)
    assert read_results(package / TUNED_NAME) == (newer, other)
    stale = dataclasses.replace(other, package_hash="0" * 64)
    write_into_package(package, stale)  # measured with other files: the rest is no longer true
    assert read_results(package / TUNED_NAME) == (stale,)
    assert verify_package(package).is_intact


def test_it_is_a_package_wherever_writing_ends(
    package: Path, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after each of the three steps; the first and a later writing."""
    for number in range(2):
        tuned = dataclasses.replace(tuned, gain=1.5 + number)
        for last in range(3):
            tuned = dataclasses.replace(tuned, gain=tuned.gain + 0.01)
            with monkeypatch.context() as patch:
                patch.setattr(package_record, "write_atomically", stop_after(last))
                with pytest.raises(KeyboardInterrupt):
                    write_into_package(package, tuned)
                    raise KeyboardInterrupt  # the first writing has two steps only
            assert verify_package(package).is_intact
        write_into_package(package, tuned)
        assert verify_package(package).is_intact


def stop_after(num_writings: int) -> Callable[..., None]:
    """Return a writer that is killed in its next writing, and leaves a half-written file."""
    done = 0

    def write(path: Path, put: Callable[[BinaryIO], object]) -> None:
        nonlocal done
        done += 1
        is_killed = done > num_writings
        target = path.with_name(f".{path.name}.0a1b2c3d.partial") if is_killed else path
        with target.open("wb") as stream:
            put(stream)
        if is_killed:
            raise KeyboardInterrupt

    return write


def test_a_file_of_that_name_that_is_changed_is_no_secret(package: Path, tuned: Tuned) -> None:
    write_into_package(package, tuned)
    (package / TUNED_NAME).write_text("{}")
    assert not verify_package(package).is_intact
    with pytest.raises(PackageError, match=TUNED_NAME):
        check_sizes(package, read_manifest(package))


def test_a_package_that_is_not_whole_is_left_alone(package: Path, tuned: Tuned) -> None:
    (package / "config.json").unlink()
    before = (package / "manifest.json").read_bytes()
    with pytest.raises(PackageError, match=r"config\.json"):
        write_into_package(package, tuned)
    assert (package / "manifest.json").read_bytes() == before


def test_a_full_disk_leaves_a_package(
    package: Path, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, put: object) -> None:
        del path, put
        raise ResourceError("The disk is full.")

    monkeypatch.setattr(package_record, "write_atomically", full)
    with pytest.raises(ResourceError):
        write_into_package(package, tuned)
    assert verify_package(package).is_intact
