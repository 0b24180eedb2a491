"""What PyInstaller collects by our hook: the right libraries, and enough to run elsewhere."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from qwen_edge.pyinstaller_hooks import choose_engine_files, get_hook_dirs
from qwen_edge.runtime.kernels.library import find_kernels

ROOT = Path(__file__).parents[2]
ON_LINUX = [
    "cache.json",
    "libhwloc.so.15",
    "libopenvino.so.2641",
    "libopenvino_auto_plugin.so",
    "libopenvino_intel_cpu_plugin.so",
    "libopenvino_intel_gpu_plugin.so",
    "libopenvino_intel_npu_plugin.so",
    "libopenvino_ir_frontend.so.2641",
    "libopenvino_pytorch_frontend.so.2641",
    "libtbb.so.12",
    "libtbbmalloc.so.2",
    "libtbbmalloc_proxy.so.2",
    "tbb.pc",
]
ON_WINDOWS = [
    "cache.json",
    "openvino.dll",
    "openvino_intel_cpu_plugin.dll",
    "openvino_intel_gpu_plugin.dll",
    "openvino_intel_npu_plugin.dll",
    "openvino_ir_frontend.dll",
    "openvino_onnx_frontend.dll",
    "tbb12.dll",
    "tbb12.lib",
]
APP = """
import json, sys
from qwen_edge.runtime import load
from qwen_edge.runtime.kernels.library import find_kernels

with load(sys.argv[1]) as model:
    answer = model.session(thinking=False).ask("What is 17 + 25?")
    print(json.dumps([answer.text, model.device_choice.value.device, find_kernels().names]))
"""


@pytest.mark.parametrize(
    ("names", "devices", "expected"),
    [
        (
            ON_LINUX,
            ["CPU"],
            "libhwloc.so.15 libopenvino_intel_cpu_plugin.so libopenvino_ir_frontend.so.2641 "
            "libtbb.so.12 libtbbmalloc.so.2",
        ),
        (
            ON_LINUX,
            None,
            "cache.json libhwloc.so.15 libopenvino_intel_cpu_plugin.so "
            "libopenvino_intel_gpu_plugin.so libopenvino_intel_npu_plugin.so "
            "libopenvino_ir_frontend.so.2641 libtbb.so.12 libtbbmalloc.so.2",
        ),
        (
            ON_WINDOWS,
            ["CPU", "NPU"],
            "openvino_intel_cpu_plugin.dll openvino_intel_npu_plugin.dll "
            "openvino_ir_frontend.dll tbb12.dll",
        ),
    ],
    ids=["linux-cpu", "linux-all", "windows-cpu-npu"],
)
def test_libraries_that_openvino_loads_by_name_are_chosen(
    names: list[str], devices: Iterable[str] | None, expected: str
) -> None:
    assert choose_engine_files(names, devices) == expected.split()


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'cpu'.*CPU, GPU, NPU"):
        choose_engine_files(ON_LINUX, ["cpu"])


def test_the_installed_engine_has_what_is_looked_for() -> None:
    """A new version that names its files otherwise must not go unseen."""
    openvino = importlib.util.find_spec("openvino")
    if openvino is None or openvino.origin is None:
        pytest.skip("OpenVINO has no build for this system")
    names = [path.name for path in (Path(openvino.origin).parent / "libs").iterdir()]
    chosen = " ".join(choose_engine_files(names, ["CPU"]))
    for part in ("cpu_plugin", "ir_frontend", "tbb"):
        assert part in chosen


@pytest.mark.trust("T-EMB-04")
def test_pyinstaller_finds_the_hooks_by_itself() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["pyinstaller40"]["hook-dirs"].partition(":")
    assert getattr(importlib.import_module(module), function)() == get_hook_dirs()
    [folder] = map(Path, get_hook_dirs())
    assert [path.name for path in folder.glob("hook-*")] == ["hook-qwen_edge.runtime.py"]


@pytest.mark.trust("T-EMB-04")
def test_a_finished_program_answers_elsewhere(tmp_path: Path, demo_package: Path) -> None:
    """Ten lines, built, moved, and run without Python, home or anything of this environment."""
    pytest.importorskip("PyInstaller")
    script = tmp_path / "app.py"
    script.write_text(APP, encoding="utf-8")
    [hooks] = get_hook_dirs()
    folders = ["--distpath", "dist", "--workpath", "work", "--specpath", "spec"]
    excluded = ["openvino.tools", "openvino.torch", "torch", "onnxruntime", "scipy", "onnx"]
    options = ["--noconfirm", "--log-level", "WARN", "--additional-hooks-dir", hooks, *folders]
    options += [f"--exclude-module={name}" for name in excluded]
    build = subprocess.run(
        [sys.executable, "-m", "PyInstaller", *options, str(script)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        # Its own cache, and not the one in the home folder.
        env={**os.environ, "PYINSTALLER_CONFIG_DIR": str(tmp_path / "config")},
    )
    assert build.returncode == 0, build.stderr
    moved = (tmp_path / "dist" / "app").rename(tmp_path / "my äpp 测试")
    run = subprocess.run(
        [str(moved / "app"), str(demo_package)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"LANG": "C.UTF-8"},
    )
    assert run.returncode == 0, run.stderr
    text, device, kernels = json.loads(run.stdout)
    assert "42" in text
    assert device == "CPU"
    assert tuple(kernels) == find_kernels().names, "our own kernels did not come along"
    assert not list(moved.rglob("*telemetry*"))
