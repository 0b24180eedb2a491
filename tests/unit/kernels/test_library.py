"""Finding the compiled kernels: present, absent, damaged."""

import platform
import shutil
import sys
from pathlib import Path

import pytest

from qwen_edge.profiles.properties import OWN_KERNELS
from qwen_edge.runtime.kernels.library import LIBRARY, find_kernels, open_library

IS_OURS = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.mark.skipif(not IS_OURS, reason="the kernels are written for Linux on x86-64")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_they_were_compiled_and_run_here() -> None:
    found = find_kernels()
    assert found.path == LIBRARY
    assert found.reason is None
    # In the order of the profile's list, best first, and AVX2 wherever there is more.
    assert found.names == tuple(name for name in OWN_KERNELS if name in found.names)
    assert "avx2" in found.names


def test_a_missing_library_is_a_reason_with_a_way_out(tmp_path: Path) -> None:
    found = open_library(tmp_path / "none.so")
    assert found.path is None
    assert not found.names
    assert found.reason == "they were not compiled when it was installed"
    assert found.fix is not None
    assert "g++" in found.fix


def test_a_damaged_library_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "damaged.so"
    path.write_bytes(b"\x7fELF" + b"\0" * 100)
    found = open_library(path)
    assert found.path is None
    assert found.reason is not None
    assert "cannot be loaded" in found.reason


@pytest.mark.skipif(not IS_OURS, reason="the C library's name is Linux's")
def test_another_library_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "other.so"
    path.symlink_to("/lib/x86_64-linux-gnu/libm.so.6")
    found = open_library(path)
    assert found.path is None
    assert found.reason is not None
