"""Ctrl-C at every line of the layer that writes: it always arrives, and no half is left.

Python raises KeyboardInterrupt between two steps of its own, wherever it is. Code in C that calls
Python, as a buffered file does with the file below it, may drop what that raises.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ctrl_c import strike_each
from trust_rows import Cases

from qwen_edge.runtime.files.publishing import publish_folder, staging_folder
from qwen_edge.runtime.files.replacing import replace_content
from qwen_edge.runtime.files.writing import copy_file, write_file, write_text

OLD, NEW = b"old", b"new" * 700_000  # more than is written at once
MARK = "mark"
# What Ctrl-C takes from its owner at that very line is closed by Python, with this warning.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def write(source: Path, target: Path) -> None:
    write_file(target, source.read_bytes())


def replace(source: Path, target: Path) -> None:
    replace_content(target, source.read_bytes())


@pytest.mark.trust("T-EXP-14")
@pytest.mark.parametrize("work", [write, copy_file, replace], ids=lambda work: work.__name__)
def test_a_file(work: Callable[[Path, Path], None], tmp_path: Path, cases: Cases) -> None:
    source, target = tmp_path / "source", tmp_path / "a"
    source.write_bytes(NEW)
    target.write_bytes(OLD)

    def check() -> None:
        if work is replace:
            assert target.read_bytes() in (OLD, NEW)
            target.write_bytes(OLD)

    num_lines = strike_each(lambda: work(source, target), check)
    assert target.read_bytes() == NEW
    assert num_lines > 15
    cases(num_lines)


@pytest.mark.trust("T-EXP-14")
@pytest.mark.parametrize("has_earlier", [True, False], ids=["earlier", "nothing"])
def test_a_folder(has_earlier: bool, tmp_path: Path, cases: Cases) -> None:
    root = tmp_path / "root"
    target = root / "p"

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if has_earlier:
            target.mkdir()
            (target / MARK).write_bytes(OLD)

    def publish() -> None:
        with staging_folder(target, lambda folder: (folder / MARK).is_file(), "test") as folder:
            write_text(folder / MARK, "new")
            publish_folder(folder, target, name_last=MARK)

    def check() -> None:
        found = (target / MARK).read_bytes() if target.exists() else None
        assert found in ({OLD, b"new"} if has_earlier else {None, b"new"})
        publish()  # what the interruption left does not stand in the way of the next
        assert [path.name for path in root.iterdir()] == ["p"]
        prepare()

    prepare()
    num_lines = strike_each(publish, check)
    assert (target / MARK).read_bytes() == b"new"
    assert num_lines > 100
    cases(num_lines)
