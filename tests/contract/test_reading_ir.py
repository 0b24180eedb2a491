"""What was found out about an IR's text is remembered, as long as its files are the same."""

import os
import shutil
from pathlib import Path

import pytest

from qwen_edge.errors import PackageError
from qwen_edge.runtime import load, load_batch
from qwen_edge.runtime.backends import compiling
from qwen_edge.runtime.backends.compiling import read_ir
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.manifest import MODEL_BIN, MODEL_XML

LONG_AGO_S = 1_600_000_000


@pytest.fixture
def folder(tmp_path: Path, demo_package: Path) -> Path:
    """Return a folder with an IR that is not too young for a record."""
    for name in (MODEL_XML, MODEL_BIN):
        shutil.copy(demo_package / name, tmp_path / name)
        os.utime(tmp_path / name, (LONG_AGO_S, LONG_AGO_S))
    return tmp_path


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that grows with every check of a text."""
    paths: list[Path] = []
    check = compiling.check_ir

    def watch(xml_path: Path) -> None:
        paths.append(xml_path)
        check(xml_path)

    monkeypatch.setattr(compiling, "check_ir", watch)
    return paths


def test_a_text_is_checked_once(folder: Path, checked: list[Path], tmp_path: Path) -> None:
    for _ in range(3):
        read_ir(folder / MODEL_XML, records_dir=tmp_path / "records")
    assert len(checked) == 1
    for _ in range(2):
        read_ir(folder / MODEL_XML)
    assert len(checked) == 3


@pytest.mark.parametrize("name", [MODEL_XML, MODEL_BIN])
def test_another_file_is_checked_again(
    folder: Path, checked: list[Path], tmp_path: Path, name: str
) -> None:
    read_ir(folder / MODEL_XML, records_dir=tmp_path / "records")
    shutil.copy(folder / name, tmp_path / "new")
    os.utime(tmp_path / "new", (LONG_AGO_S, LONG_AGO_S))  # what a copy may look like
    os.replace(tmp_path / "new", folder / name)
    read_ir(folder / MODEL_XML, records_dir=tmp_path / "records")
    assert len(checked) == 2


def test_other_rules_check_again(
    folder: Path, checked: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_ir(folder / MODEL_XML, records_dir=tmp_path / "records")
    monkeypatch.setattr(compiling, "RULES", "later ones")
    read_ir(folder / MODEL_XML, records_dir=tmp_path / "records")
    assert len(checked) == 2


@pytest.mark.trust("T-PKG-06")
def test_a_refused_text_is_refused_each_time(folder: Path, tmp_path: Path) -> None:
    text = (folder / MODEL_XML).read_text(encoding="utf-8")
    (folder / MODEL_XML).write_text(text.replace('from-layer="0"', 'from-layer="77777"', 1))
    os.utime(folder / MODEL_XML, (LONG_AGO_S, LONG_AGO_S))
    for _ in range(2):
        with pytest.raises(PackageError, match="77777"):
            read_ir(folder / MODEL_XML, records_dir=tmp_path / "records")
    assert not (tmp_path / "records").exists()


@pytest.mark.trust("T-PKG-06")
def test_what_changed_after_it_was_found_sound_is_refused(folder: Path, tmp_path: Path) -> None:
    read_ir(folder / MODEL_XML, records_dir=tmp_path / "records")
    text = (folder / MODEL_XML).read_text(encoding="utf-8")
    (folder / MODEL_XML).write_text(text.replace('from-layer="0"', 'from-layer="77777"', 1))
    with pytest.raises(PackageError, match="77777"):
        read_ir(folder / MODEL_XML, records_dir=tmp_path / "records")


def test_a_package_that_is_loaded_again_is_not_checked_again(
    demo_package: Path, tmp_path: Path, checked: list[Path]
) -> None:
    package = Path(shutil.copytree(demo_package, tmp_path / "package"))
    assert read_environment().cache_dir is not None
    for path in package.iterdir():
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    for _ in range(2):
        load(package, device="CPU", warm_up=False).close()
        load_batch(package, device="CPU", warm_up=False).close()
    assert len(checked) == 1
