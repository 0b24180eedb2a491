"""OpenVINO is imported quietly: no socket, no process, no file, whoever imports after us."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qwen_edge.errors import DeviceError, MissingExtraError
from qwen_edge.runtime import engine
from qwen_edge.runtime.engine import first_line, import_openvino

ROOT = Path(__file__).parents[2]

WATCHED_PROGRAM = """
import sys

FORBIDDEN = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.system")
events = []

def watch(name, args):
    mode = args[1] if name == "open" else None
    writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    if name.startswith(FORBIDDEN) or writes:
        events.append(f"{name} {args}"[:200])

sys.addaudithook(watch)
"""

USE_ENGINE = """
import numpy as np
from qwen_edge.runtime.engine import import_openvino
ov = import_openvino()
from openvino import opset15 as ops
value = ops.parameter([2], ov.Type.f32)
compiled = ov.Core().compile_model(ov.Model([ops.relu(value)], [value], "m"), "CPU")
assert compiled([np.float32([-1, 2])])[0].tolist() == [0.0, 2.0]
"""

REPORT = """
import importlib.util
print("\\n".join(f"EVENT {event}" for event in events))
assert importlib.util.find_spec("openvino_telemetry") is None
assert sys.modules["openvino_telemetry"] is None
"""


def run_watched(program: str, home: Path) -> list[str]:
    """Run a program in a fresh interpreter and home; return what the audit hook saw."""
    home.mkdir()
    path = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    # CI and a saved choice would switch the reports off: a fresh machine has neither.
    hidden = ("CI", "QWEN_EDGE_", "XDG_", "NNCF_", "PYTEST_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": path}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_PROGRAM + program + REPORT],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("EVENT ")]


def test_import_and_use_touch_nothing(tmp_path: Path) -> None:
    """A fresh `import openvino` looks up an analytics server and writes ~/intel/stats."""
    home = tmp_path / "home"
    assert run_watched(USE_ENGINE, home) == []
    assert list(home.rglob("*")) == []


@pytest.mark.skipif(find_spec("nncf") is None, reason="needs nncf, an optional dependency")
def test_nncf_imported_afterwards_reports_nothing_either(tmp_path: Path) -> None:
    """NNCF reports its import and every compression, through the same package."""
    compress = """
import nncf
weight = ops.constant(np.ones((64, 64), np.float32))
value = ops.parameter([1, 64], ov.Type.f32)
model = ov.Model([ops.matmul(value, weight, False, True)], [value], "m")
nncf.compress_weights(model)
"""
    home = tmp_path / "home"
    assert run_watched(USE_ENGINE + compress, home) == []
    assert not (home / "intel").exists()


def test_second_call_returns_the_same_module() -> None:
    assert import_openvino() is import_openvino()
    assert sys.modules["openvino_telemetry"] is None


def test_engine_that_is_not_installed_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no build for Windows on ARM: packages run with ONNX Runtime there."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"^OpenVINO is not installed\.") as caught:
        import_openvino()
    assert "pip install qwen-edge" in caught.value.fix
    assert "pip install 'qwen-edge[onnx]'" in caught.value.fix


def test_engine_whose_own_parts_are_missing_is_not_taken_for_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_name: str) -> None:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(engine.importlib, "import_module", refuse)  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="could not be imported: No module named 'numpy'"):
        import_openvino()


def test_broken_engine_is_named_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> None:
        raise ImportError("DLL load failed while importing _pyopenvino")

    monkeypatch.setattr(engine.importlib, "import_module", refuse)  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="could not be imported: DLL load failed") as caught:
        import_openvino()
    assert "pip install" in caught.value.fix


def test_telemetry_that_is_already_there_is_left_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino_telemetry", sys)
    import_openvino()
    assert sys.modules["openvino_telemetry"] is sys
    assert "imported before qwen-edge" in caplog.text


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("plain words\n", "plain words"),
        (
            "Exception from src/inference/src/cpp/core.cpp:117:\n"
            "Exception from src/plugins/intel_cpu/src/config.cpp:505:\n"
            "NotFound: Unsupported property ZAP by CPU plugin.\n\n\n",
            "NotFound: Unsupported property ZAP by CPU plugin",
        ),
        (
            "Exception from src/inference/src/cpp/core.cpp:84:\n"
            "Check 'util::file_exists(path)' failed at src/frontends/frontend.cpp:117:\n"
            "FrontEnd API failed with GeneralFailure:\n"
            'ir: Could not open the file: "x.xml"\n\n',
            'ir: Could not open the file: "x.xml"',
        ),
        (
            "Exception from src/inference/src/cpp/core.cpp:117:\n"
            "VCL compiler loading failed, aborting. Error: Exception from src/vcl_api.cpp:22:\n"
            'Cannot load library "/opt/x y/libs/libnpu.so": gone\n',
            'VCL compiler loading failed, aborting. Error: Cannot load library "libnpu.so": gone',
        ),
        ("", "RuntimeError"),
        ("x" * 1000, "x" * 300),
    ],
    ids=["plain", "places", "checks", "continued", "empty", "long"],
)
def test_first_line_is_what_happened(message: str, expected: str) -> None:
    assert first_line(RuntimeError(message)) == expected
