"""How fast this machine is at what the time of an export or a start depends on.

Each figure takes a tenth of a second or so and is measured when it is asked for: a laptop on
battery, or one that is at work already, is another machine. What a system does not let itself be
asked is None. Reading memory is measured by `roofline.py`, the engine by `engine_speed.py`.
"""

import contextlib
import ctypes
import hashlib
import logging
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_edge.runtime.machine.roofline import measure_bandwidth

_LOGGER = logging.getLogger(__name__)
_BANDWIDTH_SECONDS = 0.3
_HASHED_BYTES = 16 << 20
_DISK_BYTES = 32 << 20
_CALLS = 7
_LEAST_SECONDS = 1e-4  # a clock's step; nothing here is faster
_LOOPS = 200_000


@dataclass(frozen=True)
class MachineSpeed:
    """What was measured.

    Args:
        memory_bytes_per_s: Reading memory with all cores.
        hash_bytes_per_s: SHA-256 on one core.
        loops_per_s: Turns of an empty loop of Python's on one core, for all that is neither
            arithmetic nor memory.
    """

    memory_bytes_per_s: float
    hash_bytes_per_s: float
    loops_per_s: float


def measure_machine() -> MachineSpeed:
    """Measure memory and one core, in half a second."""
    return MachineSpeed(
        memory_bytes_per_s=measure_bandwidth(seconds=_BANDWIDTH_SECONDS),
        hash_bytes_per_s=measure_hashing(),
        loops_per_s=measure_loops(),
    )


def measure_hashing() -> float:
    """Return bytes per second of SHA-256 on one core, the best of three."""
    block = bytes(_HASHED_BYTES)
    return _HASHED_BYTES / _best_of(lambda: hashlib.sha256(block))


def measure_loops() -> float:
    """Return turns per second of an empty loop, the best of a few times."""

    def loop() -> None:
        for _ in range(_LOOPS):
            pass

    return _LOOPS / _best_of(loop)


def measure_writing(folder: Path) -> float | None:
    """Return bytes per second of writing to a disk and waiting until it has them.

    Args:
        folder: On the disk in question; must exist.

    State:
        Writes a file of 32 MB without a name, or with one that is removed at once.
    """
    block = os.urandom(1 << 20)  # some disks and file systems compress
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".qwen-edge-") as file:
            started_s = time.perf_counter()
            for _ in range(_DISK_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return _DISK_BYTES / max(time.perf_counter() - started_s, _LEAST_SECONDS)
    except OSError as error:
        _LOGGER.debug("The disk of %s cannot be measured: %s", folder, error)
        return None


def measure_reading(path: Path) -> float | None:
    """Return bytes per second of reading a file from its disk; None where memory has it.

    Args:
        path: A file of more than 64 MB, or the figure says little.

    State:
        Asks the system to drop 32 MB of the file from memory, which it then reads again.
    """
    drop = getattr(os, "posix_fadvise", None)
    if drop is None:  # Windows and macOS: no way to read past the system's memory in plain Python
        return None
    try:
        with path.open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            start = (size_bytes // 2) & ~(mmap.PAGESIZE - 1)
            num_bytes = min(_DISK_BYTES, size_bytes - start)
            drop(file.fileno(), start, num_bytes, os.POSIX_FADV_DONTNEED)
            share = _resident_share(file.fileno(), start, num_bytes)
            if share is None or share > 0:  # still there: on a disk of memory, or mapped
                return None
            file.seek(start)
            started_s = time.perf_counter()
            left = num_bytes
            while left > 0 and (read := len(file.read(min(left, 4 << 20)))):
                left -= read
            return num_bytes / max(time.perf_counter() - started_s, _LEAST_SECONDS)
    except (OSError, ValueError) as error:
        _LOGGER.debug("Reading %s cannot be measured: %s", path, error)
        return None


def find_cached_share(path: Path) -> float:
    """Return which part of a file the system has in memory, 0 to 1; 1 where it does not say."""
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        share = _resident_share(file.fileno(), 0, size_bytes)
        return 1.0 if share is None else share
    return 1.0


def _resident_share(descriptor: int, start: int, num_bytes: int) -> float | None:
    """Ask Linux which pages of a file are in memory; None on other systems.

    Source:
        mincore(2). Of files that one may not write it says that all are.
    """
    if not sys.platform.startswith("linux") or num_bytes <= 0:
        return None
    mincore = getattr(ctypes.CDLL(None, use_errno=True), "mincore", None)
    if mincore is None:
        return None
    num_pages = -(-num_bytes // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * num_pages)()
    # Not for writing: a private copy that nobody changes is what gives ctypes an address.
    with mmap.mmap(descriptor, num_bytes, access=mmap.ACCESS_COPY, offset=start) as view:
        first = ctypes.c_char.from_buffer(view)
        address = ctypes.c_void_p(ctypes.addressof(first))
        del first
        if mincore(address, ctypes.c_size_t(num_bytes), found) != 0:
            return None
    pages = np.frombuffer(bytes(found), np.uint8)
    return float(np.count_nonzero(pages & 1)) / num_pages


def _best_of(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few calls: others are slowed by something else."""
    times = []
    for _ in range(_CALLS):
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return max(min(times), _LEAST_SECONDS)
