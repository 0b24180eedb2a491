"""The reader of ELF files, on real libraries."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from qwen_edge.bundle.elf import (
    highest_version,
    is_elf,
    read_elf,
    read_symbols,
    shorten_search_path,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other files")


@pytest.fixture
def core() -> Path:
    """Return OpenVINO's core library."""
    spec = importlib.util.find_spec("openvino")
    assert spec is not None and spec.origin is not None
    return next((Path(spec.origin).parent / "libs").glob("libopenvino.so.*"))


def test_what_a_library_needs(core: Path) -> None:
    facts = read_elf(core)
    assert {"libtbb.so.12", "libstdc++.so.6", "libc.so.6"} <= set(facts.needed)
    assert facts.soname == core.name
    assert facts.search_path == ("$ORIGIN",)
    assert highest_version(facts, "GLIBC") >= (2, 17)
    assert highest_version(facts, "NOTHING") == ()


def test_symbols(core: Path) -> None:
    defined, wanted = read_symbols(core)
    assert any("7convert" in name or "Core" in name for name in defined)
    assert "memcpy" in wanted and not {"memcpy"} & defined


def test_other_files_are_none(tmp_path: Path, core: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no library")
    assert not is_elf(text)
    with pytest.raises(ValueError, match="no 64-bit ELF"):
        read_elf(text)
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(core.read_bytes()[:5000])
    assert is_elf(damaged)
    with pytest.raises(ValueError):
        read_elf(damaged)


def test_a_search_path_becomes_shorter_and_never_longer(tmp_path: Path, core: Path) -> None:
    library = next(core.parent.glob("libtbb.so.*"))
    copy = Path(shutil.copyfile(library, tmp_path / library.name))
    assert not shorten_search_path(copy, "$ORIGIN/../further")
    assert copy.read_bytes() == library.read_bytes()
    assert shorten_search_path(copy, "/x")
    assert read_elf(copy).search_path == ("/x",)
    assert read_elf(copy).needed == read_elf(library).needed
    assert copy.stat().st_size == library.stat().st_size
