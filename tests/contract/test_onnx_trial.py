"""The trial of an ONNX model in a child process: what the child does never happens here.

Where an engine must crash, hang or talk, a module named `onnxruntime` on the path stands in for
it: the child finds modules where this process does.
"""

import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from qwen_edge.errors import DeviceError, MissingExtraError, PackageError, ResourceError
from qwen_edge.runtime.backends.onnx_file import read_onnx
from qwen_edge.runtime.backends.onnx_trial import try_in_child
from qwen_edge.runtime.devices import trial_process
from qwen_edge.runtime.devices.trial_process import ChildEnd

MakeOnnx = Callable[..., Path]
StandIn = Callable[[str], Path]
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def demo(onnx_demo: MakeOnnx) -> Path:
    return onnx_demo("int4")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Return a function that puts code in the engine's place; it returns the code's folder."""

    def put(code: str) -> Path:
        folder = tmp_path / "engine"
        folder.mkdir()
        (folder / "onnxruntime.py").write_text(textwrap.dedent(code), encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return put


def refusal(folder: Path, timeout_s: float = TIMEOUT_S) -> PackageError:
    with pytest.raises(PackageError) as caught:
        try_in_child(folder, timeout_s=timeout_s)
    assert caught.value.fix
    assert str(folder) in caught.value.problem
    return caught.value


@pytest.mark.parametrize("recipe", ["int4", "int8", "fp16"])
@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
def test_our_models_pass(onnx_demo: MakeOnnx, recipe: str, is_portable: bool) -> None:
    try_in_child(onnx_demo(recipe, is_portable=is_portable), timeout_s=TIMEOUT_S)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_crash_stays_in_the_child(demo: Path, stand_in: StandIn) -> None:
    stand_in("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    problem = refusal(demo).problem
    assert problem.endswith("a process that tried it first was ended by signal 11 (SIGSEGV).")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_child_killed_for_memory_is_no_fault_of_the_package(
    demo: Path, stand_in: StandIn
) -> None:
    """The child asks to be ended first; calling the package broken would keep IR from being run."""
    stand_in("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ResourceError, match=r"signal 9 \(SIGKILL, as when memory runs out\)"):
        try_in_child(demo, timeout_s=TIMEOUT_S)


def test_an_application_that_embeds_python_is_not_started_again(
    demo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There `sys.executable` may be the application, and nothing says that it is frozen."""
    monkeypatch.setattr(sys, "executable", "/opt/MyApp/myapp")
    try_in_child(demo, timeout_s=TIMEOUT_S)
    assert "there is no interpreter" in caplog.text


def test_the_current_folder_is_not_where_the_child_looks_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    first = trial_process.make_environment()["PYTHONPATH"].split(os.pathsep)[0]
    assert first == os.path.abspath(next(entry for entry in sys.path if entry))  # noqa: PTH100


def test_an_abort_keeps_what_the_engine_said_last(demo: Path, stand_in: StandIn) -> None:
    stand_in(
        """
        import os
        os.write(2, b"first\\n\\x1b[31mterminate called: bad\\xff shape\\x1b[0m.\\n\\n")
        os.abort()
        """
    )
    error = refusal(demo)
    assert error.facts["last_line"] == "?[31mterminate called: bad\ufffd shape?[0m"
    assert error.facts["returncode"] != 0
    assert str(error.facts["last_line"]) in error.problem


def test_a_child_that_ends_without_a_word(demo: Path, stand_in: StandIn) -> None:
    stand_in("import os; os._exit(7)")
    assert refusal(demo).problem.endswith("a process that tried it first ended with code 7.")


def test_a_code_of_windows_is_written_as_people_look_it_up() -> None:
    assert "code 0xC0000005" in ChildEnd(0xC0000005, "", 1.0).describe()


def test_what_the_engine_refuses_is_told(demo: Path, tmp_path: Path) -> None:
    """Tables of two positions fit the file, and not the third token."""
    folder = Path(shutil.copytree(demo, tmp_path / "package"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("rotary."):
            tensor.dims[0] = 2
            next(entry for entry in tensor.external_data if entry.key == "length").value = "256"
    del model.graph.value_info[:]
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert read_onnx(folder).max_context_tokens == 2
    problem = refusal(folder).problem
    assert "a process that tried it first could not run it: " in problem
    assert "cos_cache" in problem


def test_too_little_memory_is_no_fault_of_the_package(demo: Path, stand_in: StandIn) -> None:
    stand_in(
        """
        class SessionOptions:
            def add_session_config_entry(self, name, value): pass
        class GraphOptimizationLevel:
            ORT_ENABLE_ALL = 99
        def disable_telemetry_events(): pass
        def set_default_logger_severity(level): pass
        def get_available_providers(): return ["CPUExecutionProvider"]
        def InferenceSession(*arguments, **options):
            raise MemoryError("std::bad_alloc")
        """
    )
    with pytest.raises(ResourceError, match="bad_alloc") as caught:
        try_in_child(demo, timeout_s=TIMEOUT_S)
    assert caught.value.fix


def test_a_long_line_is_cut() -> None:
    assert trial_process.find_last_line(b"first\n" + b"x" * 5000 + b"\n\n") == "x" * 300


def test_a_talking_child_is_neither_blocked_nor_remembered(
    demo: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody reads holds 64 kB; then the writer waits for ever."""
    tails = []
    last_line = trial_process.find_last_line
    monkeypatch.setattr(
        trial_process, "find_last_line", lambda text: (tails.append(len(text)), last_line(text))[1]
    )
    stand_in(
        """
        import os
        for _ in range(5000):
            os.write(1, b"x" * 1000 + b"\\n")
            os.write(2, b"x" * 1000 + b"\\n")
        os.write(2, b"the end")
        os._exit(1)
        """
    )
    assert refusal(demo).problem.endswith("ended with code 1: the end.")
    assert tails[0] <= 16_384


def test_a_child_that_hangs_is_ended(demo: Path, stand_in: StandIn) -> None:
    folder = stand_in(
        """
        import os, pathlib, time
        pathlib.Path(__file__).with_name("alive").write_text(str(os.getpid()))
        while True:
            pathlib.Path(__file__).with_name("beat").write_text(str(time.time()))
            time.sleep(0.05)
        """
    )
    started_s = time.monotonic()
    with pytest.raises(DeviceError, match="was not done after 3 s"):
        try_in_child(demo, timeout_s=3)
    assert time.monotonic() - started_s < 30
    assert (folder / "alive").exists()
    last = (folder / "beat").read_text(encoding="utf-8")
    time.sleep(0.3)
    assert (folder / "beat").read_text(encoding="utf-8") == last


def test_a_missing_engine_is_no_fault_of_the_package(demo: Path, stand_in: StandIn) -> None:
    stand_in("raise ModuleNotFoundError('No module named onnxruntime', name='onnxruntime')")
    with pytest.raises(MissingExtraError, match="'onnxruntime', which is not inst") as caught:
        try_in_child(demo, timeout_s=TIMEOUT_S)
    assert caught.value.fix == "pip install 'qwen-edge[onnx]'"


def test_a_broken_engine_is_no_fault_of_the_package(demo: Path, stand_in: StandIn) -> None:
    stand_in("raise ImportError('libfoo.so.1: cannot open shared object file')")
    with pytest.raises(DeviceError, match="cannot open shared object file") as caught:
        try_in_child(demo, timeout_s=TIMEOUT_S)
    assert "doctor" in caught.value.fix


def test_the_child_gets_little_and_no_telemetry(
    demo: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("LD_PRELOAD_OF_MINE", "x")
    folder = stand_in(
        """
        import json, os, pathlib, sys
        facts = {"env": dict(os.environ), "input": sys.stdin.read()}
        pathlib.Path(__file__).with_name("facts").write_text(json.dumps(facts))
        os._exit(1)
        """
    )
    reader, writer = os.pipe()
    os.write(writer, b"typed")
    os.close(writer)
    kept = os.dup(0)
    os.dup2(reader, 0)
    try:
        refusal(demo)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reader)
    text = (folder / "facts").read_text(encoding="utf-8")
    assert '"ORT_DISABLE_TELEMETRY": "1"' in text
    assert '"input": ""' in text
    assert "secret" not in text
    assert "LD_PRELOAD_OF_MINE" not in text


def test_a_module_of_the_current_folder_is_not_run(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "numpy", "google", "logging"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(9)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "" not in sys.path
    try_in_child(demo, timeout_s=TIMEOUT_S)


def test_what_can_be_seen_in_the_file_is_said_without_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(PackageError, match=r"model\.onnx' is missing"):
        try_in_child(tmp_path, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("where", ["frozen", "no interpreter", "forbidden"])
def test_where_no_child_can_be_started_this_is_logged(
    demo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A frozen application would open itself once more: there nothing must be started."""
    if where == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif where == "no interpreter":
        monkeypatch.setattr(sys, "executable", "")
    else:
        monkeypatch.setattr(sys, "executable", str(demo / "nowhere"))
    if where != "forbidden":
        monkeypatch.setattr(subprocess, "Popen", None)
    with caplog.at_level(logging.WARNING):
        try_in_child(demo, timeout_s=TIMEOUT_S)
    assert "was not tried in a child process" in caplog.text
