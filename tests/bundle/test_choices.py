"""What goes into a bundle: devices, libraries, packages, parts of Python, on both systems."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from qwen_edge.bundle import distributions
from qwen_edge.bundle.distributions import (
    LEFT_OUT,
    SERVER_REQUIREMENTS,
    find_distributions,
    normalise,
)
from qwen_edge.bundle.interpreter import plan_linux, plan_windows, write_search_path
from qwen_edge.bundle.request import choose_devices
from qwen_edge.bundle.systems import choose_engine_files, find_system
from qwen_edge.errors import DeviceError, MissingExtraError, PackageError, UsageError
from qwen_edge.runtime.package import read_manifest

ROOT = Path(__file__).parents[2]
LINUX, WINDOWS = find_system("linux", "x86_64"), find_system("win32", "AMD64")
# As the wheels of openvino 2026.4.1 hold them.
LINUX_NAMES = """
cache.json libhwloc.so.15 libopenvino.so.2641 libopenvino_auto_batch_plugin.so
libopenvino_auto_plugin.so libopenvino_c.so.2641 libopenvino_gguf_frontend.so.2641
libopenvino_hetero_plugin.so libopenvino_intel_cpu_plugin.so libopenvino_intel_gpu_plugin.so
libopenvino_intel_npu_plugin.so libopenvino_ir_frontend.so.2641 libopenvino_jax_frontend.so.2641
libopenvino_onnx_frontend.so.2641 libtbb.so.12 libtbbbind_2_5.so.3 libtbbmalloc.so.2
libtbbmalloc_proxy.so.2 tbb.pc
"""
WINDOWS_NAMES = """
cache.json openvino.dll openvino.lib openvino_auto_batch_plugin.dll openvino_auto_plugin.dll
openvino_c.dll openvino_hetero_plugin.dll openvino_intel_cpu_plugin.dll
openvino_intel_gpu_plugin.dll openvino_intel_npu_compiler.dll
openvino_intel_npu_compiler_loader.dll openvino_intel_npu_plugin.dll
openvino_intel_npu_vm_runtime.dll openvino_ir_frontend.dll
openvino_onnx_frontend.dll tbb12.dll tbbbind_2_5.dll tbbmalloc.dll tbbmalloc_proxy.dll
"""
LINUX_LIBRARIES, WINDOWS_LIBRARIES = LINUX_NAMES.split(), WINDOWS_NAMES.split()


def test_a_cpu_needs_few_libraries() -> None:
    assert choose_engine_files(LINUX, ["CPU"], LINUX_LIBRARIES) == [
        "libhwloc.so.15",
        "libopenvino.so.2641",
        "libopenvino_intel_cpu_plugin.so",
        "libopenvino_ir_frontend.so.2641",
        "libtbb.so.12",
        "libtbbbind_2_5.so.3",
        "libtbbmalloc.so.2",
    ]
    assert choose_engine_files(WINDOWS, ["CPU"], WINDOWS_LIBRARIES) == [
        "openvino.dll",
        "openvino_intel_cpu_plugin.dll",
        "openvino_ir_frontend.dll",
        "tbb12.dll",
        "tbbbind_2_5.dll",
        "tbbmalloc.dll",
    ]


def test_other_devices_add_theirs() -> None:
    cpu = set(choose_engine_files(LINUX, ["CPU"], LINUX_LIBRARIES))
    every = set(choose_engine_files(LINUX, ["CPU", "GPU", "NPU"], LINUX_LIBRARIES))
    assert every - cpu == {
        "cache.json",
        "libopenvino_intel_gpu_plugin.so",
        "libopenvino_intel_npu_plugin.so",
    }
    npu = set(choose_engine_files(WINDOWS, ["CPU", "NPU"], WINDOWS_LIBRARIES))
    assert npu - set(choose_engine_files(WINDOWS, ["CPU"], WINDOWS_LIBRARIES)) == {
        "openvino_intel_npu_compiler.dll",
        "openvino_intel_npu_compiler_loader.dll",
        "openvino_intel_npu_plugin.dll",
        "openvino_intel_npu_vm_runtime.dll",
    }
    with pytest.raises(DeviceError, match="which GPU needs"):
        choose_engine_files(LINUX, ["CPU", "GPU"], sorted(cpu))


@pytest.mark.parametrize(("name", "machine"), [("darwin", "arm64"), ("win32", "ARM64")])
def test_other_systems_are_refused(name: str, machine: str) -> None:
    with pytest.raises(UsageError, match="Bundles are made on"):
        find_system(name, machine)


def test_devices_are_those_of_the_package(demo_package: Path) -> None:
    manifest = read_manifest(demo_package)
    made_for = tuple(sorted(entry.device for entry in manifest.devices))
    assert made_for == ("CPU", "GPU", "NPU")
    assert choose_devices(None, manifest) == made_for
    assert choose_devices(("cpu",), manifest) == ("CPU",)
    assert choose_devices((" npu", "Gpu"), manifest) == ("CPU", "GPU", "NPU")
    for asked, said in ((("cpuu",), "Did you mean 'CPU'"), (("",), "names no device")):
        with pytest.raises(UsageError, match=said):
            choose_devices(asked, manifest)


def test_a_device_the_package_is_not_for(demo_package: Path) -> None:
    import dataclasses

    manifest = read_manifest(demo_package)
    cpu_only = tuple(entry for entry in manifest.devices if entry.device == "CPU")
    manifest = dataclasses.replace(manifest, devices=cpu_only)
    assert choose_devices(None, manifest) == ("CPU",)
    with pytest.raises(UsageError, match="not made for NPU"):
        choose_devices(("npu",), manifest)
    with pytest.raises(PackageError, match="ONNX model only"):
        choose_devices(None, dataclasses.replace(manifest, devices=()))


def test_packages_are_those_the_project_requires() -> None:
    found = find_distributions(with_server=False)
    names = [entry.name for entry in found]
    assert names[0] == "qwen-edge" and names[1:] == sorted(names[1:])
    assert {"openvino", "numpy", "tokenizers", "jinja2", "llguidance", "rich"} <= set(names)
    assert not set(names) & {*LEFT_OUT, "starlette", "pydantic", "torch", "nncf", "pytest"}
    for entry in found:
        assert entry.licence != "unknown", entry.name
        assert not [file.name for file in entry.files if "/tests/" in file.name], entry.name
    project = {file.name for file in found[0].files}
    assert "qwen_edge/cli/bundled.py" in project
    assert "qwen_edge/profiles/catalog/core-ultra.toml" in project
    assert not [
        name for name in project if name.startswith(("qwen_edge/export", "qwen_edge/server"))
    ]


def test_the_server_brings_its_own() -> None:
    without = {entry.name for entry in find_distributions(with_server=False)}
    found = {entry.name: entry for entry in find_distributions(with_server=True)}
    assert {*SERVER_REQUIREMENTS, "pydantic-core", "h11", "anyio"} <= found.keys() - without
    files = {file.name for file in found["qwen-edge"].files}
    assert "qwen_edge/server/page/index.html" in files


def test_the_servers_requirements_are_those_of_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["serve"]
    assert {normalise(Requirement(text).name) for text in extra} == set(SERVER_REQUIREMENTS)


def test_a_server_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "SERVER_REQUIREMENTS", ("starlette", "no-such-package"))
    with pytest.raises(MissingExtraError) as refused:
        find_distributions(with_server=True)
    assert "'no-such-package'" in refused.value.problem
    assert "--without-server" in refused.value.fix
    assert find_distributions(with_server=False)


def make_library(folder: Path) -> None:
    for name in ("os.py", "encodings/utf_8.py", "idlelib/run.py", "test/test_os.py", "turtle.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def test_parts_of_a_python_on_linux(tmp_path: Path) -> None:
    make_library(tmp_path)
    (tmp_path / "LICENSE.txt").write_text("PSF")
    (tmp_path / "lib-dynload").mkdir()
    for name in ("_ssl", "readline", "_testcapi", "math", "_tkinter", "_codecs_cn"):
        (tmp_path / "lib-dynload" / f"{name}.cpython-311-x86_64-linux-gnu.so").write_text("")
    found = plan_linux(tmp_path / "python3.11", tmp_path, "3.11.9")
    assert [name for _, name in found.sources] == ["encodings/utf_8.py", "os.py"]
    assert [path.name.split(".")[0] for path in found.modules] == ["_codecs_cn", "_ssl", "math"]
    assert found.licence == tmp_path / "LICENSE.txt"


def test_parts_of_a_python_on_windows(tmp_path: Path) -> None:
    make_library(tmp_path / "Lib")
    for name in (
        "python.exe", "python3.dll", "python311.dll", "vcruntime140.dll", "vcruntime140_1.dll",
        "LICENSE.txt", "NEWS.txt", "DLLs/_ctypes.pyd", "DLLs/_tkinter.pyd", "DLLs/libffi-8.dll",
        "DLLs/libcrypto-3.dll", "DLLs/tcl86t.dll", "DLLs/sqlite3.dll", "DLLs/_msi.pyd",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "msvcp140.dll").write_text("")
    found = plan_windows(tmp_path, "3.11.9", (tmp_path / "venv",))
    assert {path.name for path in found.libraries} == {
        "python3.dll",
        "python311.dll",
        "vcruntime140.dll",
        "vcruntime140_1.dll",
        "libffi-8.dll",
        "libcrypto-3.dll",
        "msvcp140.dll",
    }
    assert [path.name for path in found.modules] == ["_ctypes.pyd"]
    assert found.program == tmp_path / "python.exe"
    assert write_search_path(WINDOWS).splitlines()[-1] == "."
    assert write_search_path(LINUX).splitlines()[-1] == "modules"


def test_a_python_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sources"):
        plan_linux(tmp_path / "python3", tmp_path, "3.11.9")
