"""Facts about this machine that known problems are recognised by, under one name each.

Gathers what the other probes found and adds what only rules ask for: power, containers,
environment, remote desktops. A fact that is not known here is left out, never guessed.
`known_problems.py` says how a rule is read.
"""

import ctypes
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_edge.profiles.hardware import Hardware
from qwen_edge.runtime.devices.drivers import (
    Accelerator,
    find_old_npu_library,
    has_npu_compiler,
    is_wsl,
)
from qwen_edge.runtime.devices.probing import DeviceReport
from qwen_edge.runtime.machine.known_problems import Fact, Facts
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.recipe_facts import MatrixFacts, RecipeFacts

FACTS: Mapping[str, str] = {
    "system": "Linux, Windows or Darwin",
    "kernel": "Linux: the kernel's version",
    "windows_build": "Windows: the number of its build",
    "is_wsl": "Linux inside Windows",
    "is_container": "Docker, Podman or Kubernetes",
    "is_remote_desktop": "Windows: the session comes over Remote Desktop",
    "is_emulated": "this Python was built for another processor",
    "is_core_ultra": "the CPU's name says so",
    "cpu_codename": "the design's name, for Intel's",
    "num_logical_cores": "hardware threads",
    "cpu_quota_cores": "cores' worth of time a container may use",
    "quota_threads": "the same as a whole number, at least 1",
    "is_quota_below_threads": "whether that is less than the threads there are",
    "memory_gb": "installed memory, or the container's limit",
    "bandwidth_gb_per_s": "memory read by all cores together",
    "is_on_battery": "no mains power",
    "power_mode": "Linux: platform profile; Windows: battery-saver or normal",
    "openvino_version": "of pip's package",
    "openvino_error": "why OpenVINO cannot be imported",
    "other_openvino_package": "a second package with the same module",
    "genai_version": "of openvino-genai",
    "genai_fits": "whether it is for this OpenVINO",
    "foreign_openvino": "another OpenVINO that the environment names",
    "has_gpu": "an Intel GPU is built in",
    "has_gpu_node": "it has a device file (Linux)",
    "gpu_node": "its path",
    "gpu_accessible": "this user may open it",
    "gpu_kernel_driver": "i915 or xe",
    "has_gpu_driver": "the part for programs is installed",
    "gpu_driver": "its version",
    "is_gpu_usable": "OpenVINO lists it",
    "gpu_error": "why it does not",
    "has_npu": "an Intel NPU is built in",
    "has_npu_node": "as for the GPU",
    "npu_node": "as for the GPU",
    "npu_accessible": "as for the GPU",
    "npu_pci_id": "its number",
    "has_npu_driver": "as for the GPU",
    "npu_driver": "as for the GPU",
    "is_npu_usable": "as for the GPU",
    "npu_error": "as for the GPU",
    "npu_architecture": "3720, 4000, 5010, …",
    "has_npu_compiler": "something here can compile for it (Linux)",
    "old_npu_library": "path of a driver library under its former name",
    "package_has_npu": "the package lists an NPU",
    "is_package_fit_for_npu": "its weights are what an NPU compiles",
    "package_weights": "its weights, in words",
    "package_gpu_cache_precision": "what it forces the GPU's cache to",
    "is_package_path_ascii": "its path has no other characters",
    "has_openvino_provider": "onnxruntime-openvino is installed",
}
"""Every fact a rule may ask for, and what it is."""

_SECOND_PACKAGES = ("openvino-dev", "openvino-nightly")
_FOREIGN_VARIABLES = ("INTEL_OPENVINO_DIR", "LD_LIBRARY_PATH", "PYTHONPATH")
_NPU_GROUP_SIZES = (-1, 128)
_ON_BATTERY, _SAVER_ON = 0, 1  # SYSTEM_POWER_STATUS.ACLineStatus, SystemStatusFlag


@dataclass(frozen=True)
class Probes:
    """What was found out already; what was not is None.

    Args:
        hardware: CPU and memory.
        versions: Installed distribution to version.
        devices: What OpenVINO lists.
        accelerators: What the system lists; None where it cannot tell.
        openvino_error: Why OpenVINO could not be imported.
        properties: Device to property to value, as OpenVINO says it of those it lists.
        bandwidth_bytes_per_s: Of memory, while nothing else ran.
    """

    hardware: Hardware
    versions: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[DeviceReport] = ()
    accelerators: Sequence[Accelerator] | None = None
    openvino_error: str | None = None
    properties: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    bandwidth_bytes_per_s: float | None = None


def collect_facts(
    probes: Probes, *, root: Path = Path("/"), variables: Mapping[str, str] | None = None
) -> dict[str, Fact]:
    """Return the facts of this machine; those not known are left out.

    Args:
        probes: What was found out already.
        root: Where Linux's files are.
        variables: The environment, instead of the process's own.
    """
    facts: dict[str, Fact] = {
        **_about_system(probes.hardware, root, os.environ if variables is None else variables),
        **_about_hardware(probes),
        **_about_versions(probes.versions),
        "openvino_error": probes.openvino_error,
    }
    for kind in ("GPU", "NPU"):
        facts |= _about_accelerator(kind, probes)
    if probes.hardware.os == "Linux" and facts.get("has_npu"):
        facts["has_npu_compiler"] = has_npu_compiler(root) or _has_engine_compiler()
        facts["old_npu_library"] = find_old_npu_library(root)
    return {name: value for name, value in facts.items() if value is not None}


def package_facts(manifest: Manifest, folder: Path, versions: Mapping[str, str]) -> Facts:
    """Return the facts of a package, to be added to the machine's.

    Args:
        manifest: The package's.
        folder: Where it is.
        versions: Installed distribution to version.
    """
    recipe = manifest.recipe
    precisions = [
        str(entry.properties["KV_CACHE_PRECISION"]).lower()
        for entry in manifest.devices
        if entry.device == "GPU" and "KV_CACHE_PRECISION" in entry.properties
    ]
    kind = "symmetric" if recipe.symmetric else "asymmetric"
    fits = _fits_npu(recipe)
    return {
        "package_has_npu": any(entry.device == "NPU" for entry in manifest.devices),
        "is_package_fit_for_npu": fits,
        "package_weights": f"{recipe.weights}, {kind}, groups of {recipe.group_size}",
        "package_gpu_cache_precision": precisions[0] if precisions else None,
        "is_package_path_ascii": str(folder.absolute()).isascii(),
        "has_openvino_provider": "onnxruntime-openvino" in versions,
    }


def _fits_npu(recipe: RecipeFacts) -> bool:
    """Whether every matrix of the layers is as the NPU wants it; `legality.py` has the sources."""
    formats: list[RecipeFacts | MatrixFacts] = [recipe, *(recipe.matrices or {}).values()]
    return recipe.ratio == 1 and all(
        found.group_size == -1
        if found.weights == "nf4"
        else found.weights == "int4" and found.symmetric and found.group_size in _NPU_GROUP_SIZES
        for found in formats
    )


def _about_system(hardware: Hardware, root: Path, variables: Mapping[str, str]) -> dict[str, Fact]:
    facts: dict[str, Fact] = {"system": hardware.os, "is_emulated": hardware.is_emulated}
    named = [
        variables[name]
        for name in _FOREIGN_VARIABLES
        if "openvino" in variables.get(name, "").lower()
        and "site-packages" not in variables.get(name, "")
    ]
    facts["foreign_openvino"] = named[0] if named else None
    if hardware.os == "Linux":
        facts["kernel"] = _read(root / "proc/sys/kernel/osrelease") or None
        facts["is_wsl"] = is_wsl(root)
        facts["is_container"] = _is_container(root, variables)
        facts["is_on_battery"] = _is_on_battery(root)
        facts["power_mode"] = _read(root / "sys/firmware/acpi/platform_profile") or None
    elif hardware.os == "Windows":
        facts["windows_build"] = platform.version().rpartition(".")[2] or None
        facts["is_remote_desktop"] = variables.get("SESSIONNAME", "").upper().startswith("RDP")
        facts |= _read_windows_power()
    return facts


def _about_hardware(probes: Probes) -> dict[str, Fact]:
    hardware, bandwidth = probes.hardware, probes.bandwidth_bytes_per_s
    quota = hardware.cpu_quota_cores
    memory = hardware.memory_bytes
    return {
        "is_core_ultra": hardware.is_core_ultra,
        "cpu_codename": hardware.cpu_model.codename if hardware.cpu_model else None,
        "num_logical_cores": hardware.num_logical_cores,
        "cpu_quota_cores": quota,
        "quota_threads": None if quota is None else max(math.floor(quota), 1),
        "is_quota_below_threads": None if quota is None else quota < hardware.num_logical_cores,
        "memory_gb": None if memory is None else round(memory / 1e9, 1),
        "bandwidth_gb_per_s": None if bandwidth is None else round(bandwidth / 1e9, 1),
    }


def _about_versions(versions: Mapping[str, str]) -> dict[str, Fact]:
    engine, genai = versions.get("openvino"), versions.get("openvino-genai")
    twice = [name for name in _SECOND_PACKAGES if name in versions and engine is not None]
    fits = None
    if engine is not None and genai is not None:
        fits = genai.rpartition(".")[0] == engine
    return {
        "openvino_version": engine,
        "other_openvino_package": " ".join(twice) or None,
        "genai_version": genai,
        "genai_fits": fits,
    }


def _about_accelerator(kind: str, probes: Probes) -> dict[str, Fact]:
    """Return what is known of the first GPU or NPU."""
    name = kind.lower()
    reports = [entry for entry in probes.devices if entry.name.partition(".")[0] == kind]
    usable = [entry for entry in reports if entry.is_available]
    told = probes.properties.get(usable[0].name, {}) if usable else {}
    facts: dict[str, Fact] = {
        f"is_{name}_usable": bool(usable) if reports else None,
        f"{name}_error": reports[0].reason if reports and not usable else None,
    }
    if kind == "NPU":
        facts["npu_architecture"] = told.get("DEVICE_ARCHITECTURE")
    if probes.accelerators is None:
        return facts
    found = [entry for entry in probes.accelerators if entry.kind == kind]
    facts[f"has_{name}"] = bool(found)
    if not found:
        return facts
    entry = found[0]
    engines = told.get(f"{kind}_DRIVER_VERSION", "")  # an NPU's is a plain number: no version
    version = entry.driver_version or (engines if "." in engines else None)
    if probes.hardware.os == "Linux":
        facts[f"has_{name}_node"] = entry.node is not None
        facts[f"{name}_node"] = entry.node
        facts[f"{name}_accessible"] = entry.is_accessible
    facts |= {f"has_{name}_driver": version is not None, f"{name}_driver": version}
    own = {"gpu_kernel_driver": entry.kernel_driver} if kind == "GPU" else {}
    return facts | (own or {"npu_pci_id": entry.pci_id})


def _has_engine_compiler() -> bool:
    """Return whether the installed OpenVINO brings an NPU compiler; it is not imported."""
    folders = [Path(entry) / "openvino" / "libs" for entry in sys.path if entry]
    return any(
        next(folder.glob("libopenvino_intel_npu_compiler*"), None) is not None
        for folder in folders
        if folder.is_dir()
    )


def _is_container(root: Path, variables: Mapping[str, str]) -> bool:
    marks = (root / ".dockerenv", root / "run/.containerenv")
    return any(map(Path.exists, marks)) or "KUBERNETES_SERVICE_HOST" in variables


def _is_on_battery(root: Path) -> bool | None:
    """Return whether no mains supply is connected; None for machines without a battery."""
    supplies = list((root / "sys/class/power_supply").glob("*"))
    kinds = {entry: _read(entry / "type") for entry in supplies}
    # A mouse's battery is one as well, but its scope is "Device".
    batteries = [
        entry
        for entry, kind in kinds.items()
        if kind == "Battery" and _read(entry / "scope") != "Device"
    ]
    if not batteries:
        return None
    return all(_read(entry / "status") == "Discharging" for entry in batteries)


def _read_windows_power() -> dict[str, Fact]:
    """Return what GetSystemPowerStatus says: bytes for mains, battery, charge, and saver."""
    status = (ctypes.c_uint8 * 12)()
    try:
        kernel: Any = ctypes.CDLL("kernel32")
        if not kernel.GetSystemPowerStatus(ctypes.byref(status)):
            return {}
    except (OSError, AttributeError):
        return {}
    return {
        "is_on_battery": status[0] == _ON_BATTERY,
        "power_mode": "battery-saver" if status[3] == _SAVER_ON else "normal",
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
