"""Facts about this machine's CPU and memory, asked from the operating system.

Owns the question, for Linux, Windows and macOS, with the standard library only: a probe must
work where the engine does not load. It does not know devices other than the CPU; those come
from the runtime's device probe. What a system does not tell is None or an empty tuple.
"""

import ctypes
import importlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

ISA_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
_X86_NAMES = ("x86_64", "amd64", "i386", "i686", "x86")
_KIB = 1024


@dataclass(frozen=True)
class Hardware:
    """What this machine computes with.

    Args:
        os: "Linux", "Windows" or "Darwin".
        architecture: As the system names it: "x86_64", "AMD64", "arm64".
        cpu_name: Brand name, for example "Intel(R) Core(TM) Ultra 7 155H"; None when unknown.
        num_physical_cores: Cores of the machine; None when unknown.
        num_logical_cores: Hardware threads that this process may use.
        isa_features: Those of `ISA_FEATURES` that the system reports. Windows reports only
            avx2 and avx512f.
        memory_bytes: Installed memory, or the container's limit when lower; None when unknown.
        available_memory_bytes: Memory that can be had without swapping; None when unknown.
    """

    os: str
    architecture: str
    cpu_name: str | None
    num_physical_cores: int | None
    num_logical_cores: int
    isa_features: tuple[str, ...]
    memory_bytes: int | None
    available_memory_bytes: int | None

    @property
    def is_x86(self) -> bool:
        """True on x86 processors of any maker."""
        return self.architecture.lower() in _X86_NAMES

    @property
    def is_core_ultra(self) -> bool:
        """True when the CPU's name says Intel Core Ultra. A guess: virtual machines hide it."""
        return re.search(r"\bcore(\(tm\))?\s+ultra\b", self.cpu_name or "", re.I) is not None


def probe_hardware() -> Hardware:
    """Ask the operating system for CPU and memory facts. Never raises.

    State:
        Changes nothing; reads system files or calls system functions.
    """
    system = platform.system()
    if system == "Linux":
        return probe_linux(Path("/"))
    if system == "Windows":
        return _probe_windows()
    if system == "Darwin":
        return _probe_macos()
    return _plain(system)


def probe_linux(root: Path) -> Hardware:
    """Read the facts from `proc` and `sys` under a root folder.

    Args:
        root: `/`, or a folder with copies of the files.
    """
    cpuinfo = _read_text(root / "proc/cpuinfo")
    memory, available = parse_meminfo(_read_text(root / "proc/meminfo"))
    limit = _read_number(root / "sys/fs/cgroup/memory.max")  # "max" when there is no limit
    if limit is not None and (memory is None or limit < memory):
        memory = limit
        free = max(limit - _count_held_bytes(root / "sys/fs/cgroup"), 0)
        available = free if available is None else min(available, free)
    name, num_cores, features = parse_cpuinfo(cpuinfo)
    return Hardware(
        "Linux",
        platform.machine(),
        name,
        num_cores,
        _count_usable_threads(),
        features,
        memory,
        available,
    )


def _count_held_bytes(folder: Path) -> int:
    """Return the memory a container cannot give back: all of its own but file pages."""
    used = _read_number(folder / "memory.current") or 0
    stat = _read_text(folder / "memory.stat")
    pages = re.findall(r"^(?:active|inactive)_file (\d+)$", stat, re.M)
    return max(used - sum(int(count) for count in pages), 0)


def parse_cpuinfo(text: str) -> tuple[str | None, int | None, tuple[str, ...]]:
    """Return name, number of physical cores and features from /proc/cpuinfo.

    Args:
        text: The file's content; may be empty or of another processor family.
    """
    fields: dict[str, str] = {}
    cores: set[tuple[str, str]] = set()
    socket = "0"
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        fields.setdefault(key, value)
        if key == "physical id":
            socket = value
        elif key == "core id":
            cores.add((socket, value))
    flags = set(fields.get("flags", "").split())
    features = tuple(name for name in ISA_FEATURES if name in flags)
    return fields.get("model name") or None, len(cores) or None, features


def parse_meminfo(text: str) -> tuple[int | None, int | None]:
    """Return total and available bytes from /proc/meminfo, None for what is not there."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.M))
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    return (
        int(total) * _KIB if total else None,
        int(available) * _KIB if available else None,
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdecimal() else None


def _count_usable_threads() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    try:
        usable = len(affinity(0)) if affinity is not None else None
    except OSError:
        usable = None
    return usable or os.cpu_count() or 1


def _plain(system: str) -> Hardware:
    """Return what Python itself knows."""
    # not platform.processor(): it starts a process on some systems
    threads = _count_usable_threads()
    return Hardware(system, platform.machine(), None, None, threads, (), None, None)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("total_page", ctypes.c_uint64),
        ("available_page", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended", ctypes.c_uint64),
    )


# winnt.h: PF_AVX2_INSTRUCTIONS_AVAILABLE, PF_AVX512F_INSTRUCTIONS_AVAILABLE
_WINDOWS_FEATURES = ((40, "avx2"), (41, "avx512f"))
_RELATION_PROCESSOR_CORE = 0  # winnt.h: LOGICAL_PROCESSOR_RELATIONSHIP.RelationProcessorCore


def _probe_windows() -> Hardware:
    plain = _plain("Windows")
    try:
        kernel = ctypes.CDLL("kernel32")
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        has_memory = bool(kernel.GlobalMemoryStatusEx(ctypes.byref(status)))
        features = tuple(
            name
            for number, name in _WINDOWS_FEATURES
            if kernel.IsProcessorFeaturePresent(ctypes.c_uint32(number))
        )
        num_cores = _count_windows_cores(kernel)
    except (OSError, AttributeError):
        return plain
    return Hardware(
        "Windows",
        plain.architecture,
        _read_windows_cpu_name(),
        num_cores,
        plain.num_logical_cores,
        features,
        status.total if has_memory else None,
        status.available if has_memory else None,
    )


def _read_windows_cpu_name() -> str | None:
    try:
        registry = importlib.import_module("winreg")
        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, path) as key:
            return str(registry.QueryValueEx(key, "ProcessorNameString")[0]).strip() or None
    except (ImportError, OSError):
        return None


def _count_windows_cores(kernel: ctypes.CDLL) -> int | None:
    """Count the core records of GetLogicalProcessorInformationEx."""
    size = ctypes.c_uint32(0)
    kernel.GetLogicalProcessorInformationEx(_RELATION_PROCESSOR_CORE, None, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    is_filled = kernel.GetLogicalProcessorInformationEx(
        _RELATION_PROCESSOR_CORE, buffer, ctypes.byref(size)
    )
    return count_core_records(buffer.raw[: size.value]) if is_filled else None


def count_core_records(content: bytes) -> int | None:
    """Count the records in what GetLogicalProcessorInformationEx wrote.

    Args:
        content: Records that each begin with two little-endian uint32: kind, own size in bytes.

    Source: learn.microsoft.com, SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX.
    """
    num_cores, start = 0, 0
    while start + 8 <= len(content):
        size_bytes = int.from_bytes(content[start + 4 : start + 8], "little")
        if size_bytes < 8:
            break
        num_cores += 1
        start += size_bytes
    return num_cores or None


def _probe_macos() -> Hardware:
    plain = _plain("Darwin")
    try:
        libc = ctypes.CDLL(None)
        name = _sysctl(libc, "machdep.cpu.brand_string").rstrip(b"\0").decode(errors="replace")
        memory = int.from_bytes(_sysctl(libc, "hw.memsize"), "little")
        num_cores = int.from_bytes(_sysctl(libc, "hw.physicalcpu"), "little")
        flags = _sysctl(libc, "machdep.cpu.leaf7_features") + b" "  # Intel only
        flags += _sysctl(libc, "machdep.cpu.features")
    except (OSError, AttributeError, TypeError):
        return plain
    spelled = set(flags.replace(b"\0", b"").decode(errors="replace").lower().split())
    return Hardware(
        "Darwin",
        plain.architecture,
        name or None,
        num_cores or None,
        plain.num_logical_cores,
        tuple(feature for feature in ISA_FEATURES if feature in spelled),
        memory or None,
        None,
    )


def _sysctl(libc: ctypes.CDLL, name: str) -> bytes:
    """Return a sysctl value as bytes; empty when there is none of this name."""
    size = ctypes.c_size_t(0)
    if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0) != 0:
        return b""
    buffer = ctypes.create_string_buffer(size.value)
    if libc.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0) != 0:
        return b""
    return buffer.raw[: size.value]
