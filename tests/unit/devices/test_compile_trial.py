"""The trial of a compiler in a child process: what it means, and what is remembered of it.

Where the child must crash or hang, a module named `openvino` on the path stands in for the engine:
the child finds modules where this process does. Elsewhere its end is made up.
"""

import dataclasses
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import DeviceError, EdgeError, PackageError, ParityError, ResourceError
from qwen_edge.runtime.devices import compile_trial
from qwen_edge.runtime.devices.compile_trial import CompileTask, run_task, try_compile
from qwen_edge.runtime.devices.trial_process import ChildEnd, run_trial
from qwen_edge.runtime.manifest import DeviceSettings, Manifest
from qwen_edge.runtime.package import read_manifest, write_manifest

SAMPLE = Path(__file__).parents[2] / "data" / "manifest.json"
GPU = DeviceSettings("GPU", {"PERFORMANCE_HINT": "LATENCY"}, 256, None, None, 32)
REFUSED, DAMAGED, NO_MEMORY, WRONG = 65, 70, 68, 69
Ends = list[ChildEnd | None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that looks like a package, and give the test a cache of its own."""
    monkeypatch.setenv("QWEN_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    made = tmp_path / "päckage"
    made.mkdir()
    shutil.copyfile(SAMPLE, made / "manifest.json")
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (made / name).write_bytes(b"x")
    then = time.time() - 60
    for path in made.iterdir():
        os.utime(path, (then, then))
    return made


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> tuple[Ends, list[CompileTask]]:
    """Return how children will end, one after the other, and what they were given."""
    ends: Ends = []
    given: list[CompileTask] = []

    def run(task: CompileTask, *, time_limit_s: float) -> ChildEnd | None:
        given.append(task)
        return ends.pop(0)

    monkeypatch.setattr(compile_trial, "run_task", run)
    return ends, given


def end(code: int | None, line: str = "") -> ChildEnd:
    return ChildEnd(code, line, 600.0)


def failure_of(folder: Path, manifest: Manifest, settings: DeviceSettings = GPU) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        try_compile(folder, manifest, settings)
    assert caught.value.fix
    return caught.value


def test_a_compilation_that_went_well_is_not_repeated(
    folder: Path, manifest: Manifest, tasks: tuple[Ends, list[CompileTask]]
) -> None:
    ends, given = tasks
    ends.append(end(0))
    for _ in range(3):
        try_compile(folder, manifest, GPU)
    (task,) = given
    assert task.settings == GPU
    assert task.vocab_size == manifest.model.vocab_size
    assert task.golden is not None
    assert task.golden.token_ids == manifest.golden.token_ids[:4]
    assert task.cache_folder is None  # a GPU would write all weights again


@pytest.mark.trust("T-DEV-03")
@pytest.mark.parametrize(
    ("code", "line", "error_type", "words"),
    [
        (-6, "LLVM ERROR: out", DeviceError, r"signal 6 \(SIGABRT\): LLVM ERROR: out\.$"),
        (None, "Compiling", DeviceError, r"was not done after 600 s\.$"),
        (0xC0000005, "", DeviceError, r"by Windows with code 0xC0000005\.$"),
        (REFUSED, "Device 'GPU' refused it", DeviceError, r"^Device 'GPU' refused it\.$"),
        (WRONG, "It answers with 1", ParityError, r"^It answers with 1\.$"),
    ],
    ids=["crash", "hang", "windows", "refusal", "wrong tokens"],
)
def test_a_failure_is_remembered(
    folder: Path,
    manifest: Manifest,
    tasks: tuple[Ends, list[CompileTask]],
    code: int | None,
    line: str,
    error_type: type[EdgeError],
    words: str,
) -> None:
    """Nobody waits ten minutes twice for a compiler that never ends."""
    ends, given = tasks
    ends.append(end(code, line))
    first, again = failure_of(folder, manifest), failure_of(folder, manifest)
    assert len(given) == 1
    for error in (first, again):
        assert type(error) is error_type
        assert error.facts["device"] == "GPU"
    with pytest.raises(error_type, match=words):
        raise error_type(first.problem)
    assert again.problem.startswith(first.problem)
    assert "found out earlier" in again.problem
    assert (first.facts["is_remembered"], again.facts["is_remembered"]) == (False, True)
    assert first.facts["returncode"] == code
    # The fix says how to have it tried again, and that is true.
    Path(again.fix.rpartition("delete ")[2].strip("'")).unlink()
    ends.append(end(0))
    try_compile(folder, manifest, GPU)
    assert len(given) == 2


@pytest.mark.parametrize(
    ("code", "error_type"),
    [
        (NO_MEMORY, ResourceError),
        (-9, ResourceError),
        (DAMAGED, PackageError),
        (-2, DeviceError),
        (-15, DeviceError),
    ],
    ids=["memory", "killed", "damaged", "ctrl-c", "end of session"],
)
def test_what_says_nothing_of_the_device_is_not_remembered(
    folder: Path,
    manifest: Manifest,
    tasks: tuple[Ends, list[CompileTask]],
    code: int,
    error_type: type[EdgeError],
) -> None:
    ends, given = tasks
    ends += [end(code, "why"), end(0)]
    assert type(failure_of(folder, manifest)) is error_type
    try_compile(folder, manifest, GPU)
    assert len(given) == 2


@pytest.mark.trust("T-PKG-11")
@pytest.mark.parametrize("what", ["properties", "device", "driver", "package", "engine"])
def test_a_finding_holds_for_what_it_was_found_with(
    folder: Path,
    manifest: Manifest,
    tasks: tuple[Ends, list[CompileTask]],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    ends, given = tasks
    ends += [end(-11), end(0)]
    settings = GPU
    failure_of(folder, manifest)
    if what == "properties":
        settings = dataclasses.replace(GPU, properties={"PERFORMANCE_HINT": "THROUGHPUT"})
    elif what == "device":
        settings = dataclasses.replace(GPU, device="GPU.1")
    elif what == "driver":
        monkeypatch.setattr(compile_trial, "probe_driver_version", lambda device: "32.0.100.4181")
    elif what == "engine":
        facts = compile_trial._facts(GPU)
        monkeypatch.setattr(compile_trial, "_facts", lambda _: {**facts, "openvino": "2026.5.0"})
    else:
        write_manifest(folder, dataclasses.replace(manifest, name="other"))
        then = time.time() - 30
        os.utime(folder / "manifest.json", (then, then))
    try_compile(folder, manifest, settings)
    assert len(given) == 2


def test_the_cpu_is_not_tried(
    folder: Path, manifest: Manifest, tasks: tuple[Ends, list[CompileTask]]
) -> None:
    try_compile(folder, manifest, dataclasses.replace(GPU, device="CPU"))
    assert not tasks[1]


def test_where_no_child_can_be_started_nothing_is_remembered(
    folder: Path, manifest: Manifest, tasks: tuple[Ends, list[CompileTask]]
) -> None:
    ends, given = tasks
    ends += [None, None]
    for _ in range(2):
        try_compile(folder, manifest, GPU)
    assert len(given) == 2


def test_an_npu_gets_a_folder_for_what_its_compiler_makes(
    folder: Path, manifest: Manifest, tasks: tuple[Ends, list[CompileTask]], tmp_path: Path
) -> None:
    ends, given = tasks
    ends.append(end(0))
    try_compile(folder, manifest, DeviceSettings("NPU", {}, 512, 256, 256, 256))
    assert given[0].cache_folder is not None
    assert Path(given[0].cache_folder).is_relative_to(tmp_path / "cache")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that puts code in the engine's place, for children only."""

    def put(code: str) -> None:
        engine = tmp_path / "engine"
        engine.mkdir()
        (engine / "openvino.py").write_text(textwrap.dedent(code), encoding="utf-8")
        monkeypatch.syspath_prepend(str(engine))

    return put


@pytest.mark.trust("T-DEV-03", "T-PKG-09")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_an_abort_of_the_compiler_stays_in_the_child(
    folder: Path, manifest: Manifest, stand_in: Callable[[str], None]
) -> None:
    """An NPU's compiler ends the process with LLVM's abort (openvino.genai issue 3429)."""
    stand_in("import os; os.write(2, b'LLVM ERROR: no\\n'); os.abort()")
    (folder / "openvino_model.xml").write_bytes(b'<?xml version="1.0"?><net name="x"></net>')
    error = failure_of(folder, manifest)
    assert error.problem.endswith("was ended by signal 6 (SIGABRT): LLVM ERROR: no.")


@pytest.mark.trust("T-DEV-03")
def test_a_compiler_that_hangs_is_ended(folder: Path, stand_in: Callable[[str], None]) -> None:
    stand_in("import time; time.sleep(60)")
    (folder / "openvino_model.xml").write_bytes(b'<?xml version="1.0"?><net name="x"></net>')
    started_s = time.monotonic()
    found = run_task(CompileTask(str(folder), GPU, 1024), time_limit_s=1.0)
    assert found == ChildEnd(None, "", 1.0)
    assert time.monotonic() - started_s < 10


def test_what_is_raised_in_the_child_is_told(folder: Path) -> None:
    """Not an IR: the engine is not asked at all."""
    found: Any = run_task(CompileTask(str(folder), GPU, 1024), time_limit_s=60)
    assert found.returncode == DAMAGED
    assert "is not an OpenVINO model" in found.last_line


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_ctrl_c_is_for_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to all processes: that is no fault of what the child tries."""
    (tmp_path / "polite.py").write_text(
        "import os, signal\n"
        "from qwen_edge.runtime.devices.trial_process import be_expendable\n"
        "be_expendable(); os.kill(os.getpid(), signal.SIGINT)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = run_trial("polite", [], time_limit_s=60)
    assert found is not None
    assert found.is_well
