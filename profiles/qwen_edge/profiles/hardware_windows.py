"""CPU and memory facts from Windows: kernel32, the registry, and the processor itself.

It knows no other system; `hardware.py` says what the facts mean. A function that is missing gives
unknowns, never an error.
"""

import ctypes
import importlib
import sys
from typing import Any

from qwen_edge.profiles.cpuid import CpuidFacts, call_on_windows, read_facts_with
from qwen_edge.profiles.hardware import CoreKinds, Hardware, plain_hardware

# winnt.h: PF_AVX2_INSTRUCTIONS_AVAILABLE, PF_AVX512F_INSTRUCTIONS_AVAILABLE
_FEATURES = ((40, "avx2"), (41, "avx512f"))
_RELATION_PROCESSOR_CORE = 0  # winnt.h: LOGICAL_PROCESSOR_RELATIONSHIP.RelationProcessorCore
_MACHINE_ARM64 = 0xAA64  # winnt.h: IMAGE_FILE_MACHINE_ARM64
_HEAD_BYTES, _CLASS_OFFSET = 8, 9


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


def probe_windows() -> Hardware:
    """Ask Windows. Never raises; what it does not tell is None or an empty tuple."""
    plain = plain_hardware("Windows")
    try:
        kernel = ctypes.CDLL("kernel32")
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        has_memory = bool(kernel.GlobalMemoryStatusEx(ctypes.byref(status)))
        told = tuple(
            name
            for number, name in _FEATURES
            if kernel.IsProcessorFeaturePresent(ctypes.c_uint32(number))
        )
        classes = _read_core_classes(kernel)
        is_emulated = plain.is_x86 and _is_on_arm(kernel)
    except (OSError, AttributeError):
        return plain
    facts = _ask_processor(kernel) if plain.is_x86 else None
    return Hardware(
        "Windows",
        plain.architecture,
        _read_cpu_name(),
        len(classes) or None,
        plain.num_logical_cores,
        facts.isa_features if facts else told,
        status.total if has_memory else None,
        status.available if has_memory else None,
        cpu_model=facts.cpu_model if facts else None,
        core_kinds=count_kinds(classes),
        is_emulated=is_emulated,
    )


def _ask_processor(kernel: Any) -> CpuidFacts | None:
    if sys.maxsize < 1 << 32:  # the machine code is for 64 bits
        return None
    try:
        return read_facts_with(lambda code: call_on_windows(kernel, code))
    except OSError:
        return None


def _is_on_arm(kernel: Any) -> bool:
    """Return whether the machine is an ARM one, whatever this process was built for."""
    process, native = ctypes.c_uint16(0), ctypes.c_uint16(0)
    try:
        is_told = kernel.IsWow64Process2(
            ctypes.c_void_p(-1),  # this process
            ctypes.byref(process),
            ctypes.byref(native),
        )
    except AttributeError:  # before Windows 10 1511
        return False
    return bool(is_told) and native.value == _MACHINE_ARM64


def _read_cpu_name() -> str | None:
    try:
        registry = importlib.import_module("winreg")
        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, path) as key:
            return str(registry.QueryValueEx(key, "ProcessorNameString")[0]).strip() or None
    except (ImportError, OSError):
        return None


def _read_core_classes(kernel: Any) -> tuple[int, ...]:
    size = ctypes.c_uint32(0)
    kernel.GetLogicalProcessorInformationEx(_RELATION_PROCESSOR_CORE, None, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    is_filled = kernel.GetLogicalProcessorInformationEx(
        _RELATION_PROCESSOR_CORE, buffer, ctypes.byref(size)
    )
    return read_core_classes(buffer.raw[: size.value]) if is_filled else ()


def read_core_classes(content: bytes) -> tuple[int, ...]:
    """Return the efficiency class of each core in what GetLogicalProcessorInformationEx wrote.

    Args:
        content: Records that each begin with two little-endian uint32, kind and own size in
            bytes, then a byte of flags and one with the class: higher is faster.

    Source: learn.microsoft.com, SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, PROCESSOR_RELATIONSHIP.
    """
    classes = []
    start = 0
    while start + _HEAD_BYTES <= len(content):
        size_bytes = int.from_bytes(content[start + 4 : start + _HEAD_BYTES], "little")
        if size_bytes <= _CLASS_OFFSET or start + _CLASS_OFFSET >= len(content):
            break
        classes.append(content[start + _CLASS_OFFSET])
        start += size_bytes
    return tuple(classes)


def count_kinds(classes: tuple[int, ...]) -> CoreKinds | None:
    """Return how many cores are of each kind, by their classes; None where all are alike."""
    kinds = sorted(set(classes), reverse=True)
    if len(kinds) < 2:
        return None
    performance = classes.count(kinds[0])
    low_power = classes.count(kinds[-1]) if len(kinds) > 2 else 0
    return CoreKinds(performance, len(classes) - performance - low_power, low_power)
