"""What the tests of the samples share: where they are, and a Qt application without a screen."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Before Qt is imported, which reads it when the application is made.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
WaitUntil = Callable[..., None]


@pytest.fixture(scope="session")
def samples() -> Path:
    """Return the folder of the samples."""
    return ROOT / "samples"


@pytest.fixture(scope="session")
def app() -> Iterator[Any]:
    """Return the one Qt application of this process."""
    from PySide6.QtWidgets import QApplication

    yield QApplication.instance() or QApplication([])


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """Return a function that lets Qt work until a condition holds."""

    def wait(condition: Callable[[], object], timeout_s: float = 120) -> None:
        from PySide6.QtCore import QCoreApplication

        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, "it did not happen in time"
            QCoreApplication.processEvents()
            time.sleep(0.002)

    return wait


@pytest.fixture(scope="session")
def desktop(samples: Path) -> Iterator[Path]:
    """Make the modules of the desktop sample importable; return their folder."""
    folder = samples / "desktop"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
