"""Ctrl-C at every line of the layer that writes: it always arrives, and no half is left.

Python raises KeyboardInterrupt between two steps of its own, wherever it is. Code in C that calls
Python, as a buffered file does with the file below it, may drop what that raises.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from trust_rows import Cases

import qwen_edge.runtime.files
from qwen_edge.runtime.files.publishing import publish_folder, staging_folder
from qwen_edge.runtime.files.replacing import replace_content
from qwen_edge.runtime.files.writing import copy_file, write_file, write_text

LAYER = str(Path(qwen_edge.runtime.files.__file__).parent)
OLD, NEW = b"old", b"new" * 700_000  # more than is written at once
MARK = "mark"
# What Ctrl-C takes from its owner at that very line is closed by Python, with this warning.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


class CtrlC:
    """Raises KeyboardInterrupt at the n-th call or line of the layer that writes.

    Args:
        number: From 1.

    State:
        `has_struck`: there were so many.
    """

    def __init__(self, number: int) -> None:
        self.has_struck = False
        self._left = number

    def __call__(self, frame: FrameType, event: str, argument: object) -> "CtrlC | None":
        del argument
        if not frame.f_code.co_filename.startswith(LAYER):
            return None
        if event in ("call", "line") and not self.has_struck:
            self._left -= 1
            if not self._left:
                self.has_struck = True
                raise KeyboardInterrupt
        return self


def strike_each(work: Callable[[], object], check: Callable[[], object]) -> int:
    """Do a piece of work with Ctrl-C at each of its lines, until it has no more; returns those."""
    number = 0
    while True:
        number += 1
        ctrl_c = CtrlC(number)
        sys.settrace(ctrl_c)
        try:
            work()
        except KeyboardInterrupt:
            assert ctrl_c.has_struck
        else:
            assert not ctrl_c.has_struck, f"Ctrl-C at line {number} of the work was lost"
            return number - 1
        finally:
            sys.settrace(None)
        check()


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
