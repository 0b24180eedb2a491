"""What differs between the systems a bundle can be made for: names of files.

A bundle is made on the system it is for, since it is made of this system's own Python and
libraries. This module reads nothing but names.
"""

import fnmatch
import platform
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from qwen_edge.errors import DeviceError, UsageError

DEVICES = ("CPU", "GPU", "NPU")


@dataclass(frozen=True)
class System:
    """One kind of machine.

    Args:
        name: "linux" or "windows".
        machine: The processor, as "x86_64".
        program: File name of the launcher.
        python: File name of the interpreter in the bundle.
        engine_core: Patterns of the engine's libraries that every device needs.
        engine_devices: Device → patterns of what it needs besides.
        module_suffix: Suffix of Python modules that are machine code.
    """

    name: str
    machine: str
    program: str
    python: str
    engine_core: tuple[str, ...]
    engine_devices: Mapping[str, tuple[str, ...]]
    module_suffix: str


# Of the wheels of openvino 2026.4.1. TBB loads its allocator and its binding to cores by itself;
# on Windows hwloc is part of the latter.
_LINUX_CORE = (
    "libopenvino.so.*",
    "libopenvino_ir_frontend.so.*",
    "libtbb.so.*",
    "libtbbmalloc.so.*",
    "libtbbbind_2_5.so.*",
    "libhwloc.so.*",
)
_WINDOWS_CORE = (
    "openvino.dll",
    "openvino_ir_frontend.dll",
    "tbb12.dll",
    "tbbmalloc.dll",
    "tbbbind_2_5.dll",
)
# cache.json holds kernels tuned for graphics processors.
_LINUX_DEVICES = {
    "CPU": ("libopenvino_intel_cpu_plugin.so",),
    "GPU": ("libopenvino_intel_gpu_plugin.so", "cache.json"),
    "NPU": ("libopenvino_intel_npu_plugin.so", "libopenvino_intel_npu_compiler*.so"),
}
_WINDOWS_DEVICES = {
    "CPU": ("openvino_intel_cpu_plugin.dll",),
    "GPU": ("openvino_intel_gpu_plugin.dll", "cache.json"),
    "NPU": (
        "openvino_intel_npu_plugin.dll",
        "openvino_intel_npu_compiler*.dll",  # 100 MB: not every driver has one of its own
        "openvino_intel_npu_vm_runtime.dll",
    ),
}
_MAY_BE_ABSENT = ("libopenvino_intel_npu_compiler*.so",)


def find_system(platform_name: str | None = None, machine: str | None = None) -> System:
    """Return the system this runs on.

    Args:
        platform_name: Instead of `sys.platform`, for tests.
        machine: Instead of the processor's name, for tests.

    Raises:
        UsageError: Bundles are not made for this one.
    """
    platform_name = sys.platform if platform_name is None else platform_name
    machine = platform.machine() if machine is None else machine
    if platform_name == "linux" and machine in ("x86_64", "aarch64"):
        return System("linux", machine, "qwen-edge", "python3", _LINUX_CORE, _LINUX_DEVICES, ".so")
    if platform_name == "win32" and machine.upper() == "AMD64":
        return System(
            "windows",
            "x86_64",
            "qwen-edge.exe",
            "python.exe",
            _WINDOWS_CORE,
            _WINDOWS_DEVICES,
            ".pyd",
        )
    raise UsageError(
        f"Bundles are made on Linux (x86-64, ARM) and on Windows (x86-64); this is "
        f"{platform_name!r} on {machine!r}.",
        "bundle on the system that the bundle is for",
        platform=platform_name,
        machine=machine,
    )


def choose_engine_files(
    system: System, devices: Iterable[str], present: Collection[str]
) -> list[str]:
    """Return which of the engine's files go into a bundle.

    Args:
        system: What the bundle is for.
        devices: Out of `DEVICES`.
        present: File names in the folder of the engine's libraries.

    Raises:
        DeviceError: A device's library is not in the installed engine.
    """
    chosen: set[str] = set()
    wanted = [("every device", pattern) for pattern in system.engine_core]
    for device in devices:
        wanted += [(device, pattern) for pattern in system.engine_devices[device]]
    for device, pattern in wanted:
        found = fnmatch.filter(present, pattern)
        if not found and pattern not in _MAY_BE_ABSENT:
            raise DeviceError(
                f"The installed OpenVINO has no {pattern!r}, which {device} needs.",
                "pip install --force-reinstall openvino, or bundle for other devices with "
                "--devices cpu",
                device=device,
                pattern=pattern,
            )
        chosen.update(found)
    return sorted(chosen)
