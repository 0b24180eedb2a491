"""Measuring this machine: figures that make sense, nothing left behind, None where unknown."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.machine import speed as machine_speed
from qwen_edge.runtime.machine.engine_speed import measure_engine
from qwen_edge.runtime.machine.speed import (
    find_cached_share,
    measure_hashing,
    measure_loops,
    measure_reading,
    measure_writing,
)
from qwen_edge.runtime.recipe_facts import PlannedWeights


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a fraction of what is measured otherwise."""
    monkeypatch.setattr(machine_speed, "_HASHED_BYTES", 1 << 18)
    monkeypatch.setattr(machine_speed, "_DISK_BYTES", 2 << 20)
    monkeypatch.setattr(machine_speed, "_LOOPS", 2_000)


@pytest.mark.usefixtures("small")
def test_one_core() -> None:
    assert 1e6 < measure_hashing() < 1e11
    assert 1e5 < measure_loops() < 1e11


@pytest.mark.usefixtures("small")
def test_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    speed = measure_writing(tmp_path)
    assert speed is not None and 1e5 < speed < 1e12
    assert list(tmp_path.iterdir()) == []
    assert measure_writing(tmp_path / "nowhere") is None


@pytest.mark.usefixtures("small")
def test_reading_is_measured_or_said_to_be_unknown(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 << 20))
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    speed = measure_reading(path)
    assert speed is None or 1e4 < speed < 1e12
    assert measure_reading(tmp_path / "nowhere") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore(2)")
def test_which_part_of_a_file_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert find_cached_share(path) == 1.0  # just written
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 1 << 19, os.POSIX_FADV_DONTNEED)
    assert find_cached_share(path) in (0.5, 1.0)  # a disk of memory drops nothing


def test_what_cannot_be_asked_counts_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_cached_share(tmp_path / "nowhere") == 1.0
    (tmp_path / "empty").write_bytes(b"")
    assert find_cached_share(tmp_path / "empty") == 1.0
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    (tmp_path / "file").write_bytes(b"some")
    assert measure_reading(tmp_path / "file") is None


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_the_engine_is_measured_with_each_kind_of_weights(
    weights: PlannedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.runtime.machine.engine_speed._PROBE_WEIGHTS", 200_000)
    speed = measure_engine(weights, 200, {"INFERENCE_PRECISION_HINT": "f32"}, chunk_tokens=16)
    for figure in (speed.prepared_weights_per_s, speed.multiplied_weights_per_s):
        assert figure > 1e5
    # Our kernels use weights as they are.
    assert np.isinf(speed.prepared_weights_per_s) == speed.has_own_kernels
    assert np.isfinite(speed.multiplied_weights_per_s)


def test_the_engine_may_refuse_a_property() -> None:
    with pytest.raises(DeviceError):
        measure_engine("int8", 128, {"INFERENCE_PRECISION_HINT": "f7"}, chunk_tokens=4)
