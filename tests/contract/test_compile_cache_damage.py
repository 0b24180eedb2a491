"""What OpenVINO keeps of a compilation, damaged in every way: the answer stays the sealed model's.

OpenVINO takes many damaged files for good ones and then computes something else. The CPU's plugin
writes such files too, so its compiler stands in for an NPU's here.
"""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.runtime.devices.compile_cache import (
    discard_cache_folder,
    prepare_cache_folder,
    seal_cache_folder,
)
from qwen_edge.runtime.engine import import_openvino

ROOT = Path(__file__).parents[2]
PACKAGE = "0123456789abcdef" * 4
FACTS = {"driver": "1"}
NUM_FLIPS = 100
ON_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="limits and locks as POSIX has them")


_INPUT = np.linspace(-1, 1, 64, dtype=np.float32)[None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a small model whose every weight counts, as files."""
    ov = import_openvino()
    from openvino import opset15 as ops

    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    given = ops.parameter([1, 64], ov.Type.f32, "x")
    result = ops.matmul(given, ops.constant(weights), False, True)
    path = tmp_path / "model.xml"
    ov.save_model(ov.Model([result], [given], "product"), path, compress_to_fp16=False)
    return path


@pytest.fixture
def compute(model: Path) -> Callable[[Path | None], tuple[bool, bytes]]:
    """Return a function: with this cache, was a file of it loaded, and what is the answer?"""
    core = import_openvino().Core()

    def call(folder: Path | None) -> tuple[bool, bytes]:
        properties = {} if folder is None else {"CACHE_DIR": str(folder)}
        compiled = core.compile_model(model, "CPU", properties)
        answer = compiled(_INPUT)[0].tobytes()
        return bool(compiled.get_property("LOADED_FROM_CACHE")), answer

    return call


def prepare(cache_dir: Path) -> Path:
    folder = prepare_cache_folder(cache_dir, PACKAGE, "NPU", FACTS)
    assert folder is not None
    return folder


def damages(content: bytes) -> Iterator[bytes]:
    """Yield what may become of a file: cut, emptied, random, one byte flipped at many places."""
    generator = random.Random(8)
    yield b""
    yield content[:1]
    yield content[: len(content) // 2]
    yield content[:-1]
    yield content + b"x"
    yield generator.randbytes(len(content))
    middle = len(content) // 2
    yield content[:middle] + bytes(b ^ 0xA5 for b in content[middle:][:64]) + content[middle + 64 :]
    for number in range(NUM_FLIPS):
        place = number * (len(content) - 1) // (NUM_FLIPS - 1)
        flipped = content[place] ^ (1 << generator.randrange(8))
        yield content[:place] + bytes([flipped]) + content[place + 1 :]


@pytest.mark.trust("T-PKG-10")
def test_no_damaged_file_changes_an_answer(
    compute: Callable[[Path | None], tuple[bool, bytes]], cache_dir: Path, cases: Any
) -> None:
    _, expected = compute(None)
    private = prepare(cache_dir)
    assert compute(private) == (False, expected)
    seal_cache_folder(private)
    folder = prepare(cache_dir)
    [blob] = folder.glob("*.blob")
    sealed = blob.read_bytes()
    assert compute(folder) == (True, expected), "a good file is used"
    number = 0
    for number, damaged in enumerate(damages(sealed), start=1):
        blob.chmod(0o600)
        blob.write_bytes(damaged)
        again = prepare(cache_dir)
        assert compute(again) == (False, expected), number
        discard_cache_folder(again)
    blob.write_bytes(sealed)
    assert compute(prepare(cache_dir)) == (True, expected)
    (folder / "0.blob").write_bytes(sealed)  # nobody listed it
    assert compute(prepare(cache_dir)) == (False, expected)
    assert number == NUM_FLIPS + 7
    cases(number + 1, claim="blobs")


def test_the_engine_alone_takes_damaged_files_for_good_ones(
    compute: Callable[[Path | None], tuple[bool, bytes]], cache_dir: Path
) -> None:
    """What the test before this one guards against; else it would prove nothing."""
    _, expected = compute(None)
    folder = prepare(cache_dir)
    compute(folder)
    [blob] = folder.glob("*.blob")
    sealed = blob.read_bytes()
    outcomes = []
    for damaged in list(damages(sealed))[-NUM_FLIPS::10]:
        blob.chmod(0o600)
        blob.write_bytes(damaged)
        outcomes.append(compute(folder))
    assert any(is_cached and answer != expected for is_cached, answer in outcomes)


@pytest.mark.trust("T-PKG-12")
@ON_POSIX
def test_four_processes_share_a_cache(
    model: Path, compute: Callable[[Path | None], tuple[bool, bytes]], cache_dir: Path
) -> None:
    _, expected = compute(None)
    program = textwrap.dedent("""
        import hashlib, sys
        from pathlib import Path
        import numpy as np
        from qwen_edge.runtime.devices.compile_cache import prepare_cache_folder, seal_cache_folder
        from qwen_edge.runtime.engine import import_openvino
        given_input = np.linspace(-1, 1, 64, dtype=np.float32)[None]
        core = import_openvino().Core()
        for _ in range(20):
            folder = prepare_cache_folder(Path(sys.argv[2]), sys.argv[3], "NPU", {"driver": "1"})
            given = {} if folder is None else {"CACHE_DIR": str(folder)}
            compiled = core.compile_model(sys.argv[1], "CPU", given)
            print(hashlib.sha256(compiled(given_input)[0].tobytes()).hexdigest())
            seal_cache_folder(folder)
    """)
    roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(model), str(cache_dir), PACKAGE],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": roots},
        )
        for _ in range(4)
    ]
    right = hashlib.sha256(expected).hexdigest()
    for child in children:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err[-2000:]
        assert out.split() == [right] * 20
    assert compute(prepare(cache_dir))[1] == expected


@pytest.mark.trust("T-PKG-12")
@ON_POSIX
def test_a_disk_without_room_for_the_cache_costs_time_only(
    compute: Callable[[Path | None], tuple[bool, bytes]], cache_dir: Path
) -> None:
    """A file may have 1,000 bytes: the engine's does not fit, and nothing of it is believed."""
    _, expected = compute(None)
    folder = prepare(cache_dir)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
        assert compute(folder) == (False, expected)
        seal_cache_folder(folder)
        assert compute(prepare(cache_dir)) == (False, expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert compute(prepare(cache_dir))[1] == expected
