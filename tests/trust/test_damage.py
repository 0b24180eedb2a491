"""Every single byte of a package, changed: `verify` names the file, whatever the byte was for."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from trust_rows import Cases

from qwen_edge.errors import PackageError
from qwen_edge.runtime.manifest import MANIFEST_NAME, Manifest
from qwen_edge.runtime.package import hash_file, verify_package, write_manifest

SAMPLE = Path(__file__).parents[1] / "data" / "manifest.json"
FLIPS = tuple(1 << bit for bit in range(8))
BYTES_OF_EACH = 64
pytestmark = pytest.mark.trust("T-PKG-02")


@pytest.fixture
def small_package(tmp_path: Path) -> Path:
    """Return a sealed package whose files are short; nobody loads it."""
    sample = Manifest.from_bytes(SAMPLE.read_bytes())
    names = [name for name in sample.files if "tokenizer_" not in name and "README" not in name]
    for index, name in enumerate(names):
        content = bytes((31 * index + 7 * place) % 256 for place in range(BYTES_OF_EACH + index))
        (tmp_path / name).write_bytes(content)
    files = {name: hash_file(tmp_path / name) for name in names}
    write_manifest(tmp_path, dataclasses.replace(sample, files=files))
    assert verify_package(tmp_path).is_intact
    return tmp_path


def damage(path: Path, flips: tuple[int, ...], step: int = 1) -> Iterator[tuple[int, int]]:
    """Change one byte of a file after the other, on the disk, and yield while it is."""
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for place in range(0, len(content), step):
            for flip in flips:
                file.seek(place)
                file.write(bytes([content[place] ^ flip]))
                yield place, flip
            file.seek(place)
            file.write(content[place : place + 1])


def test_each_bit_of_each_file(small_package: Path, cases: Cases) -> None:
    count = 0
    manifest = Manifest.from_bytes((small_package / MANIFEST_NAME).read_bytes())
    for name in manifest.files:
        for place, flip in damage(small_package / name, FLIPS):
            count += 1
            found = verify_package(small_package)
            assert [change.name for change in found.changed] == [name], (name, place, flip)
            assert not found.is_intact
    assert verify_package(small_package).is_intact
    cases(count, claim="damaged")


def test_each_byte_of_the_manifest(small_package: Path, cases: Cases) -> None:
    count = 0
    for place, flip in damage(small_package / MANIFEST_NAME, (1,)):
        count += 1
        with pytest.raises(PackageError, match=r"manifest\.json"):
            verify_package(small_package)
            pytest.fail(f"byte {place} changed by {flip} was not found")
    assert verify_package(small_package).is_intact
    cases(count, claim="damaged")


def test_bytes_all_over_a_real_package(demo_package: Path, tmp_path: Path, cases: Cases) -> None:
    """Files of megabytes at some hundred places, their first and last byte among them."""
    package = Path(shutil.copytree(demo_package, tmp_path / "p"))
    count = 0
    for name, facts in Manifest.from_bytes((package / MANIFEST_NAME).read_bytes()).files.items():
        for place, flip in damage(package / name, (128,), max(1, (facts.size_bytes - 1) // 8)):
            count += 1
            assert not verify_package(package).is_intact, (name, place, flip)
    assert verify_package(package).is_intact
    cases(count, claim="damaged")
