"""For PyInstaller: what a program with `qwen_edge.runtime` needs and its imports do not show.

OpenVINO loads its plugins and the reader of its model format by name, our modules are imported
when their names are first used, and our kernels are a library that OpenVINO opens.

In a spec file, `hooksconfig={"qwen_edge.runtime": {"devices": ["CPU"]}}` leaves out the plugins of
other devices.
"""  # noqa: N999 (PyInstaller wants this name)

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PyInstaller.utils.hooks import (
    collect_data_files,
    collect_submodules,
    copy_metadata,
    get_hook_config,
)

from qwen_edge.pyinstaller_hooks import choose_engine_files

hiddenimports = [
    *collect_submodules("qwen_edge.runtime"),
    *collect_submodules("qwen_edge.profiles"),
]
# Versions are part of what is remembered of a trial.
datas = [
    *collect_data_files("qwen_edge.runtime", includes=["**/*.toml"]),
    *collect_data_files("qwen_edge.profiles"),
    *copy_metadata("qwen-edge"),
]
# Reports every import of OpenVINO to a server. `engine.py` keeps it out; so it need not be there.
excludedimports = ["openvino_telemetry"]


def hook(hook_api: Any) -> None:
    """Add OpenVINO's plugins for the devices that are wanted, and our kernels."""
    runtime = find_spec("qwen_edge.runtime")
    assert runtime is not None
    assert runtime.origin is not None
    kernels = Path(runtime.origin).parent / "kernels" / "_kernels.so"
    if kernels.is_file():
        hook_api.add_binaries([(str(kernels), "qwen_edge/runtime/kernels")])
    openvino = find_spec("openvino")
    if openvino is None or openvino.origin is None:
        return  # packages are run with ONNX Runtime then, which has a hook of its own
    hook_api.add_imports("openvino", "openvino.utils.node_factory")
    libraries = Path(openvino.origin).parent / "libs"
    devices = get_hook_config(hook_api, "qwen_edge.runtime", "devices")
    for name in choose_engine_files((path.name for path in libraries.iterdir()), devices):
        is_data = name.endswith(".json")
        add = hook_api.add_datas if is_data else hook_api.add_binaries
        add([(str(libraries / name), "openvino/libs")])
