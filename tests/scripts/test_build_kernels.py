"""Building the kernels: what is missing is said, and nothing unsafe is linked."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "build_kernels", Path(__file__).parents[2] / "scripts" / "build_kernels.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
build_kernels = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build_kernels)

pytestmark = pytest.mark.skipif(
    build_kernels.find_reason_against() is not None or shutil.which("g++") is None,
    reason="the kernels are built with g++ on Linux on x86-64",
)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the library be written to a folder of this test."""
    monkeypatch.setattr(build_kernels, "KERNELS", tmp_path)
    monkeypatch.setattr(build_kernels, "LIBRARY", tmp_path / "library.so")
    monkeypatch.setattr(build_kernels, "_STAMP", tmp_path / "library.stamp")
    return tmp_path


def test_a_missing_compiler_is_said(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(elsewhere))
    with pytest.raises(build_kernels.BuildError, match="there is no C\\+\\+ compiler"):
        build_kernels.build()


def test_a_failing_compiler_leaves_nothing(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "library.so").write_bytes(b"old")
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(build_kernels.BuildError, match="the compiler failed"):
        build_kernels.build()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("source", [name for name, flags in build_kernels.SOURCES.items() if flags])
def test_files_of_kernels_share_no_code_with_others(source: str, tmp_path: Path) -> None:
    """What is weak is kept once for all files, perhaps with instructions that others lack."""
    target = tmp_path / "kernels.o"
    flags = [*build_kernels._FLAGS, *build_kernels.SOURCES[source]]
    command = ["g++", *flags, "-c", str(build_kernels.NATIVE / source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    listed = subprocess.run(["nm", str(target)], check=True, capture_output=True, text=True).stdout
    kinds = [line.split()[-2] for line in listed.splitlines()]
    assert "T" in kinds
    assert not {"W", "u"} & set(kinds)
