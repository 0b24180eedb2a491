"""A start from nothing that comes to nothing: refused, too slow, dead."""

import sys
from pathlib import Path

import pytest

from qwen_edge.errors import DeviceError, PackageError, ResourceError
from qwen_edge.runtime.benchmark import cold_start
from qwen_edge.runtime.benchmark.cold_start import measure_cold_start, read_through


def start(folder: Path, *, time_limit_s: float = 60.0) -> cold_start.ColdStart:
    """Start a program on a folder."""
    return measure_cold_start(
        folder, [1], device="auto", backend="auto", threads=None, time_limit_s=time_limit_s
    )


def test_what_the_program_is_refused_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"manifest\.json") as caught:
        start(tmp_path)
    assert caught.value.fix


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="was not done after 0 s"):
        start(tmp_path, time_limit_s=0.01)


def test_a_program_that_dies_is_told_of_with_its_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_start, "__name__", "no_such_module")
    with pytest.raises(DeviceError, match=r"ended with 1: .*no_such_module"):
        start(tmp_path)


def test_where_no_process_can_be_started_it_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(ResourceError, match="No process can be started") as caught:
        start(tmp_path)
    assert "--cold-starts 0" in caught.value.fix


def test_what_an_engine_prints_is_passed_over() -> None:
    assert cold_start._parse(b"loading...\n") is None
    assert cold_start._parse(b"[1, 2]\n") is None
    assert cold_start._parse(b'{"other": 1}\n') is None
    assert cold_start._parse(b'{"qwen-edge-cold-start": {"import_s": 1}}\n') == {"import_s": 1}


def test_reading_through_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    read_through(tmp_path, ["a", "missing"])
