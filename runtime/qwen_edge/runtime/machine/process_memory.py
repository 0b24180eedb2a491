"""How much memory a process holds, apart by what the system could take back.

Private memory is what a machine must have; pages of mapped files, such as weights, are dropped
and read again as the system likes. Asked from Linux, Windows or macOS with the standard library
only; what a system does not tell is None.
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KIB = 1024


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of one process, in bytes.

    Args:
        private_bytes: What it alone holds: resident on Linux, the footprint of macOS, and what
            is committed on Windows.
        file_bytes: Resident pages that belong to files. On Windows and macOS what is resident
            beyond the private bytes.
    """

    private_bytes: int
    file_bytes: int


def read_process_memory(pid: int | None = None) -> ProcessMemory | None:
    """Return what a process holds now; None when it is gone or the system does not tell.

    Args:
        pid: The process; None for this one.

    Source:
        proc_pid_status(5); psapi.h, PROCESS_MEMORY_COUNTERS_EX; libproc.h and sys/resource.h of
        macOS, rusage_info_v0.
    """
    number = os.getpid() if pid is None else pid
    try:
        if sys.platform == "win32":
            return _read_windows(number)
        if sys.platform == "darwin":
            return _read_macos(number)
        return parse_status(Path(f"/proc/{number}/status").read_text(encoding="ascii"))
    except (OSError, AttributeError, UnicodeDecodeError):
        return None


def parse_status(text: str) -> ProcessMemory | None:
    """Return the figures of a /proc/PID/status; None where there are none, as of a zombie.

    Args:
        text: The file's content.
    """
    sizes = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if key.startswith("Rss") and words and words[0].isdecimal():
            sizes[key] = int(words[0]) * _KIB
    if "RssAnon" not in sizes:
        return None
    return ProcessMemory(sizes["RssAnon"], sizes.get("RssFile", 0) + sizes.get("RssShmem", 0))


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS_EX of the Windows API."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("quotas", ctypes.c_size_t * 4),
        ("pagefile", ctypes.c_size_t),
        ("peak_pagefile", ctypes.c_size_t),
        ("private", ctypes.c_size_t),
    )


_QUERY_LIMITED_INFORMATION = 0x1000  # winnt.h
_VM_READ = 0x0010


def _read_windows(pid: int) -> ProcessMemory | None:
    kernel: Any = ctypes.CDLL("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    access = ctypes.c_uint32(_QUERY_LIMITED_INFORMATION | _VM_READ)
    handle = kernel.OpenProcess(access, ctypes.c_int(0), ctypes.c_uint32(pid))
    if not handle:
        return None
    counters = _Counters(size=ctypes.sizeof(_Counters))
    try:
        is_filled = kernel.K32GetProcessMemoryInfo(
            ctypes.c_void_p(handle), ctypes.byref(counters), ctypes.c_uint32(counters.size)
        )
    finally:
        kernel.CloseHandle(ctypes.c_void_p(handle))
    if not is_filled:
        return None
    return ProcessMemory(counters.private, max(counters.working_set - counters.private, 0))


class _Usage(ctypes.Structure):
    """rusage_info_v0 of macOS."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("times_and_wakeups", ctypes.c_uint64 * 5),
        ("wired", ctypes.c_uint64),
        ("resident", ctypes.c_uint64),
        ("footprint", ctypes.c_uint64),
        ("start_and_exit", ctypes.c_uint64 * 2),
    )


def _read_macos(pid: int) -> ProcessMemory | None:
    usage = _Usage()
    if ctypes.CDLL(None).proc_pid_rusage(pid, 0, ctypes.byref(usage)) != 0:
        return None
    return ProcessMemory(usage.footprint, max(usage.resident - usage.footprint, 0))
