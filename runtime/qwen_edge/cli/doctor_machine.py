"""What `doctor` looks at of the machine itself: processor, memory, cache folder, disk, versions.

It knows no engine; `doctor_engines.py` does.
"""

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.cli.doctor_engines import RUNTIMES, Finding
from qwen_edge.cli.extra import missing_export_modules
from qwen_edge.errors import EdgeError, format_bytes
from qwen_edge.profiles.hardware import Hardware

_PACKAGES = (
    "qwen-edge",
    "openvino",
    "openvino-tokenizers",
    "openvino-genai",
    "openvino-dev",
    "openvino-nightly",
    *RUNTIMES,
    "onnxruntime-genai",
    "onnx",
    "onnx-ir",
    "tokenizers",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "jinja2",
    "click",
    "rich",
    "torch",
    "torchvision",
    "optimum-intel",
)
# The full-size default package: 2.3 GB of weights, rearranged once at load, and a small cache.
_RUN_BYTES = 3_500_000_000
_EXPORT_BYTES = 3_100_000_000
TOKEN_BYTES = 2_264_000_000
"""What decoding one token of Qwen3-4B int4 reads: its weights."""
_DISK_BYTES = 15_000_000_000  # checkpoint of Qwen3-4B, its package, and the spool file
_BANDWIDTH_SECONDS = 0.5
_BUSY_SHARE = 0.5


def list_versions() -> dict[str, str]:
    """Return the installed distributions that matter, with their versions."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class MemoryBandwidth:
    """How fast memory was read, and whether other programs took part of the machine meanwhile."""

    bytes_per_s: float
    is_busy: bool


def measure_memory(hardware: Hardware) -> MemoryBandwidth | None:
    """Measure memory with all cores; None where there is too little of it to measure."""
    from qwen_edge.runtime.machine.roofline import measure_bandwidth

    is_busy = _count_waiting() > _BUSY_SHARE * hardware.num_logical_cores
    try:
        return MemoryBandwidth(measure_bandwidth(seconds=_BANDWIDTH_SECONDS), is_busy)
    except EdgeError:
        return None  # `check_hardware` says how little memory there is


def _count_waiting() -> float:
    """Return how many threads wanted a core during the last minute; 0 where it is not told."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return 0.0


def check_hardware(hardware: Hardware) -> list[Finding]:
    """Tell whether processor and memory suffice for the default model."""
    findings = []
    if not hardware.is_x86:
        findings.append(
            Finding(
                "note",
                f"{hardware.architecture} is not x86-64: no profile was made for it",
                "try --profile generic-onnx; ONNX Runtime is made for it",
            )
        )
    elif "avx2" not in hardware.isa_features:
        findings.append(
            Finding(
                "problem",
                "the CPU reports no AVX2, which OpenVINO's int4 kernels need",
                "use a machine from 2013 or later, or switch AVX2 on in the virtual machine",
            )
        )
    return [*findings, _check_memory(hardware)]


def _check_memory(hardware: Hardware) -> Finding:
    total, available = hardware.memory_bytes, hardware.available_memory_bytes
    if total is None or available is None:
        known = "" if total is None else f"{format_bytes(total)} of memory are installed; "
        return Finding("note", f"{known}the system does not tell how much memory is available")
    if available < _RUN_BYTES:
        return Finding(
            "problem" if total < _RUN_BYTES else "note",
            f"{format_bytes(available)} of {format_bytes(total)} memory are available; "
            f"Qwen3-4B int4 needs about {format_bytes(_RUN_BYTES)} to run",
            "close other programs, or use a smaller model, such as Qwen/Qwen3-1.7B",
        )
    return Finding(
        "ok",
        f"{format_bytes(available)} of {format_bytes(total)} memory available: "
        f"enough to export ({format_bytes(_EXPORT_BYTES)}) and run "
        f"({format_bytes(_RUN_BYTES)}) Qwen3-4B int4",
    )


def check_export() -> list[Finding]:
    """Tell what is missing for exporting."""
    missing = missing_export_modules()
    if not missing:
        return []
    return [
        Finding(
            "note",
            f"exporting is not installed ({', '.join(missing)} missing); packages run without it",
            "pip install 'qwen-edge[export]'",
        )
    ]


def check_cache() -> Finding:
    """Tell whether the cache folder can be used."""
    from qwen_edge.runtime.environment import read_environment

    try:
        folder = read_environment().cache_dir
    except EdgeError as error:
        return Finding("problem", error.problem, error.fix)
    if folder is None:
        return Finding("note", "no cache folder: packages are hashed at every load")
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Finding("ok", f"cache folder {folder}")
    return Finding(
        "note",
        f"the cache folder {str(folder)!r} cannot be written: packages are hashed at every load",
        "set QWEN_EDGE_CACHE_DIR to a folder that can be written",
    )


def check_disk(folder: Path) -> Finding:
    """Tell whether a folder's disk has room for an export of the default model."""
    free = shutil.disk_usage(folder).free
    if free < _DISK_BYTES:
        return Finding(
            "note",
            f"{format_bytes(free)} of disk are free here; fetching and exporting "
            f"Qwen3-4B takes about {format_bytes(_DISK_BYTES)}",
            "write elsewhere with --output and --cache-dir",
        )
    return Finding("ok", f"{format_bytes(free)} of disk free here")
