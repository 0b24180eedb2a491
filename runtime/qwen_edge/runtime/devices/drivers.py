"""Intel GPUs and NPUs that this machine has, and the drivers they have been given.

Asked from the operating system with the standard library only, so that it can be said why an
engine sees no device: there is none, its kernel driver is missing, this user may not open it, or
the part of the driver that belongs to programs is not installed. What an engine sees is in
`probing.py`; what is known to go wrong between the two in `known_problems.toml`.
"""

import importlib
import logging
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_edge.runtime.engine import import_openvino

_LOGGER = logging.getLogger(__name__)
_INTEL = "0x8086"
_KINDS: dict[str, Literal["GPU", "NPU"]] = {"0x03": "GPU", "0x12": "NPU"}  # PCI classes
# What the system's packages call the part of the driver that programs load, the newest name first.
_PACKAGES = {
    "GPU": ("intel-opencl-icd", "intel-compute-runtime"),
    "NPU": ("libze-intel-npu1", "intel-level-zero-npu", "intel-npu-driver"),
}
_NPU_COMPILER_PACKAGE = "intel-driver-compiler-npu"
_LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib")
_MAX_STATUS_BYTES = 64 << 20  # of dpkg's list; a full desktop's has 6 MB
# Classes of devices in the registry: display adapters, and "ComputeAccelerator".
_REGISTRY_CLASSES: tuple[tuple[Literal["GPU", "NPU"], str], ...] = (
    ("GPU", "{4d36e968-e325-11ce-bfc1-08002be10318}"),
    ("NPU", "{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}"),
)
_REGISTRY_PATH = r"SYSTEM\CurrentControlSet\Control\Class"
_MAX_REGISTRY_ENTRIES = 64
# Read-only properties of OpenVINO's plugins that say what a device is.
_PROPERTIES = {
    "CPU": ("DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES"),
    "GPU": (
        "DEVICE_ARCHITECTURE",
        "GPU_DRIVER_VERSION",
        "OPTIMIZATION_CAPABILITIES",
        "GPU_DEVICE_TOTAL_MEM_SIZE",
        "GPU_DEVICE_MAX_ALLOC_MEM_SIZE",
        "GPU_EXECUTION_UNITS_COUNT",
    ),
    "NPU": (
        "DEVICE_ARCHITECTURE",
        "NPU_DRIVER_VERSION",
        "NPU_COMPILER_VERSION",
        "OPTIMIZATION_CAPABILITIES",
        "NPU_DEVICE_TOTAL_MEM_SIZE",
    ),
}


@dataclass(frozen=True)
class Accelerator:
    """One GPU or NPU by Intel.

    Args:
        kind: "GPU" or "NPU".
        pci_id: The device's number, such as "0x7d1d"; None where the system does not tell.
        name: As the system calls it; None on Linux.
        kernel_driver: The driver that holds it: "i915", "xe", "intel_vpu"; None where none does.
            Linux only.
        node: The device file that programs open; None where there is none. Linux only.
        is_accessible: Whether this user may open the device file; None without one.
        driver_version: Of what programs load (Linux), or of the whole driver (Windows); None
            where it is not installed or not known.
    """

    kind: Literal["GPU", "NPU"]
    pci_id: str | None = None
    name: str | None = None
    kernel_driver: str | None = None
    node: str | None = None
    is_accessible: bool | None = None
    driver_version: str | None = None


def probe_accelerators() -> tuple[Accelerator, ...] | None:
    """Return Intel's GPUs and NPUs, or None where the system cannot tell. Never raises.

    State:
        Changes nothing; opens no device.
    """
    system = platform.system()
    if system == "Linux":
        return probe_linux(Path("/"))
    if system == "Windows":
        try:
            return tuple(_read_registry(importlib.import_module("winreg")))
        except (ImportError, OSError):
            return None
    return None


def probe_linux(root: Path) -> tuple[Accelerator, ...] | None:
    """Read the PCI devices and the installed packages under a root folder.

    Args:
        root: `/`, or a folder with copies of the files.

    Returns:
        None where there is no list of devices, or under WSL, whose GPU is not on this list.
    """
    folder = root / "sys/bus/pci/devices"
    if not folder.is_dir() or is_wsl(root):
        return None
    found = []
    for device in sorted(folder.iterdir()):
        kind = _KINDS.get(_read_line(device / "class")[:4])
        if kind is None or _read_line(device / "vendor") != _INTEL:
            continue
        node = _find_node(device, root)
        found.append(
            Accelerator(
                kind,
                pci_id=_read_line(device / "device") or None,
                kernel_driver=_read_driver_name(device),
                node=None if node is None else f"/{node.relative_to(root).as_posix()}",
                is_accessible=None if node is None else os.access(node, os.R_OK | os.W_OK),
                driver_version=find_package_version(root, _PACKAGES[kind])
                or (_find_library_version(root) if kind == "NPU" else None),
            )
        )
    return tuple(found)


def read_engine_properties(device: str) -> dict[str, str]:
    """Return what OpenVINO knows of a device it lists: architecture, driver, abilities, memory.

    Args:
        device: As OpenVINO lists it, such as "GPU.0".

    Returns:
        Property to value, as text; those that the device does not tell are left out.

    Raises:
        EdgeError: OpenVINO cannot be imported.
    """
    core = import_openvino().Core()
    found = {}
    for name in _PROPERTIES.get(device.partition(".")[0], ()):
        try:
            value = core.get_property(device, name)
        except (RuntimeError, TypeError, ValueError) as error:
            _LOGGER.debug("%s does not tell %s: %s", device, name, error)
            continue
        found[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def is_wsl(root: Path = Path("/")) -> bool:
    """Return whether this Linux runs inside Windows (WSL)."""
    return "microsoft" in _read_line(root / "proc/sys/kernel/osrelease").lower()


def has_npu_compiler(root: Path = Path("/")) -> bool:
    """Return whether the NPU driver's compiler is installed on this Linux."""
    if find_package_version(root, (_NPU_COMPILER_PACKAGE,)) is not None:
        return True
    return any(
        _glob(root / folder, "libnpu_driver_compiler.so*") is not None
        for folder in _LIBRARY_FOLDERS
    )


def find_old_npu_library(root: Path = Path("/")) -> str | None:
    """Return the path of the NPU driver's library under the name it had before version 1.17."""
    for folder in _LIBRARY_FOLDERS:
        path = _glob(root / folder, "libze_intel_vpu.so*")
        if path is not None:
            return f"/{path.relative_to(root).as_posix()}"
    return None


def find_package_version(root: Path, names: tuple[str, ...]) -> str | None:
    """Return the version of the first of these packages that Debian's or Arch's lists have."""
    status = root / "var/lib/dpkg/status"
    try:
        text = (
            status.read_text(encoding="utf-8", errors="replace")
            if status.stat().st_size <= _MAX_STATUS_BYTES
            else ""
        )
    except OSError:
        text = ""
    for name in names:
        entry = re.search(rf"^Package: {re.escape(name)}\n((?:.+\n)*)", text, re.M)
        version = re.search(r"^Version: (\S+)", entry[1], re.M) if entry else None
        if entry and version and re.search(r"^Status: .* installed$", entry[1], re.M):
            return version[1].rpartition(":")[2]  # without Debian's epoch
        folder = _glob(root / "var/lib/pacman/local", f"{name}-[0-9]*")
        if folder is not None:
            return folder.name.removeprefix(f"{name}-")
    return None


def _find_library_version(root: Path) -> str | None:
    """Return the version in the name of the NPU driver's library, for other distributions."""
    for folder in _LIBRARY_FOLDERS:
        path = _glob(root / folder, "libze_intel_[nv]pu.so.*.*")
        if path is not None:
            return path.name.partition(".so.")[2]
    return None


def _glob(folder: Path, pattern: str) -> Path | None:
    """Return the last match by name, or None; folders that cannot be read have none."""
    try:
        return max(folder.glob(pattern), default=None)
    except OSError:
        return None


def _find_node(device: Path, root: Path) -> Path | None:
    """Return the device file that a PCI device's driver made, where it exists."""
    for folder, pattern, place in (
        ("drm", "renderD*", "dev/dri"),
        ("accel", "accel*", "dev/accel"),
    ):
        entry = _glob(device / folder, pattern)
        if entry is not None and (root / place / entry.name).exists():
            return root / place / entry.name
    return None


def _read_driver_name(device: Path) -> str | None:
    try:
        return (device / "driver").resolve(strict=True).name
    except OSError:
        return None


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _read_registry(registry: Any) -> Iterator[Accelerator]:
    """Yield Intel's devices among the drivers that Windows has installed.

    Args:
        registry: The module `winreg`.
    """
    for kind, guid in _REGISTRY_CLASSES:
        for index in range(_MAX_REGISTRY_ENTRIES):
            path = rf"{_REGISTRY_PATH}\{guid}\{index:04d}"
            try:
                with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, path) as key:
                    device = _read_value(registry, key, "MatchingDeviceId").lower()
                    name = _read_value(registry, key, "DriverDesc")
                    version = _read_value(registry, key, "DriverVersion")
            except FileNotFoundError:
                break
            except OSError:  # some entries are for administrators
                continue
            number = re.search(r"ven_8086&dev_([0-9a-f]{4})", device)
            if number is not None:
                yield Accelerator(
                    kind,
                    pci_id=f"0x{number[1]}",
                    name=name or None,
                    driver_version=version or None,
                )


def _read_value(registry: Any, key: Any, name: str) -> str:
    try:
        return str(registry.QueryValueEx(key, name)[0])
    except OSError:
        return ""
