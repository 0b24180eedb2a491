"""`qwen-edge verify` on a real package, each file of it damaged in each of six ways."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.runtime.package import hash_file

MANIFEST = "manifest.json"
Undo = Callable[[], object]


def flip(path: Path) -> Undo:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    return lambda: path.write_bytes(content)


def cut(path: Path) -> Undo:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return lambda: path.write_bytes(content)


def empty(path: Path) -> Undo:
    content = path.read_bytes()
    path.write_bytes(b"")
    return lambda: path.write_bytes(content)


def delete(path: Path) -> Undo:
    content = path.read_bytes()
    path.unlink()
    return lambda: path.write_bytes(content)


def swap(path: Path) -> Undo:
    """Exchange two files of the package: each is a file that was sealed, at the wrong name."""
    others = [other for other in path.parent.iterdir() if other not in (path, path / MANIFEST)]
    other = max(others, key=lambda entry: entry.name)
    between = path.with_name(path.name + ".swap")

    def exchange() -> None:
        path.rename(between)
        other.rename(path)
        between.rename(other)

    exchange()
    return exchange


def rename(path: Path) -> Undo:
    moved = path.rename(path.with_name("renamed.bin"))
    return lambda: moved.rename(path)


@pytest.fixture
def package(demo_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_package, tmp_path / "demo"))


@pytest.mark.trust("T-PKG-02")
@pytest.mark.parametrize("damage", [flip, cut, empty, delete, swap, rename])
def test_every_file_damaged_is_named_with_exit_code_3(
    cli: Any, package: Path, damage: Callable[[Path], Undo], cases: Any
) -> None:
    files = json.loads((package / MANIFEST).read_text(encoding="utf-8"))["files"]
    names = [*files, MANIFEST]
    for name in names:
        undo = damage(package / name)
        outcome = cli("verify", package, "--files-only")
        assert (outcome.code, outcome.out) == (3, ""), name
        assert f"'{name}'" in outcome.err or f"/{name}'" in outcome.err, outcome.err
        assert "\nFix: " in outcome.err
        if name != MANIFEST and (package / name).exists():
            assert files[name]["sha256"] in outcome.err, "the hash that was sealed"
            assert hash_file(package / name).sha256 in outcome.err, "and the one that is there"
        undo()
    assert cli("verify", package, "--files-only").code == 0
    cases(len(names))
