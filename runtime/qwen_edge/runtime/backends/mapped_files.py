"""Keep a model's weights as they were sealed while an engine has their files mapped.

Engines and our kernels read weights where the file is mapped. A program that cuts such a file off
ends every process that has it mapped (SIGBUS), and one that writes over it changes answers. On
Linux the kernel can ask first: with a lease, whoever opens the file for writing waits while we put
copies in memory in the place of what is mapped; then he may go on, and the model as well. Nothing
of it costs time or memory as long as nobody writes. Files that are renamed or deleted stay as they
are anyhow. Elsewhere, and for files of other users, there is no such guard.

Source:
    man 2 fcntl, "Leases"; man 2 mremap; man 5 proc_pid_mem. Linux 6.18: a lease holds off `open`
    for writing and `truncate` for /proc/sys/fs/lease-break-time, 45 s by default.
"""

import contextlib
import ctypes
import functools
import logging
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.runtime.manifest import MODEL_BIN, MODEL_ONNX_DATA

WEIGHT_FILES = (MODEL_BIN, MODEL_ONNX_DATA)
"""The files of a package that engines map; the others they read whole."""

_LOGGER = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
_COPY_BYTES = 64 << 20
_MREMAP_MAYMOVE_FIXED = 3


@dataclass(frozen=True)
class _Range:
    """A part of this process's memory that is a mapped file's."""

    start: int
    size_bytes: int
    protection: int


class MappedFiles:
    """Guards files from before they are mapped until they are let go of.

    Args:
        paths: Regular files; those for which there is no lease are left out.

    State:
        Holds a descriptor and a lease for each file and a thread that looks after them, until
        `close` or until another program wants to write.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._leased = [leased for path in paths if (leased := _take_lease(path)) is not None]
        self._is_changing = threading.RLock()
        self._is_closed = threading.Event()
        if self._leased:
            threading.Thread(target=self._watch, name="qwen-edge-files", daemon=True).start()

    @property
    def num_guarded(self) -> int:
        """Files that nobody can write to unnoticed."""
        return len(self._leased)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold while an engine maps the files or lets go of them: copies are made before or after.

        State:
            Whoever wants to write waits meanwhile.
        """
        with self._is_changing:
            yield

    def close(self) -> None:
        """Let others write again; to be called when nothing is mapped. Twice is harmless."""
        self._is_closed.set()
        with self._is_changing:
            for descriptor in self._leased:
                _drop_lease(descriptor)
            self._leased.clear()

    def _watch(self) -> None:
        """Look for somebody who waits to write, until the files are let go of."""
        while self._leased and not self._is_closed.wait(_LOOK_EVERY_S):
            with self._is_changing:
                for descriptor in list(self._leased):
                    if not _is_broken(descriptor):
                        continue
                    self._leased.remove(descriptor)
                    try:
                        num_bytes = _make_own(os.fstat(descriptor))
                        _LOGGER.warning(
                            "A file of the open model is being changed by another program; what "
                            "was read of it, %d bytes, is kept in memory",
                            num_bytes,
                        )
                    except (OSError, MemoryError) as error:
                        _LOGGER.error("A file of the open model cannot be kept: %s", error)
                    finally:
                        _drop_lease(descriptor)


if sys.platform == "linux":
    import fcntl

    def _take_lease(path: Path) -> int | None:
        """Return a descriptor with a lease on the file, or None where there is none to be had."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # The kernel would tell by SIGIO, which ends a process: by one that does not, or none.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(descriptor, fcntl.F_SETOWN, 0)
        except OSError as error:
            _LOGGER.debug("%s cannot be guarded: %s", path, error.strerror)
            os.close(descriptor)
            return None
        return descriptor

    def _is_broken(descriptor: int) -> bool:
        return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def _drop_lease(descriptor: int) -> None:
        # By name: a child of a fork has the descriptor too, and would keep the lease.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(descriptor)

else:

    def _take_lease(path: Path) -> int | None:
        del path
        return None

    def _is_broken(descriptor: int) -> bool:
        del descriptor
        return False

    def _drop_lease(descriptor: int) -> None:
        os.close(descriptor)


def _make_own(facts: os.stat_result) -> int:
    """Put copies in the place of all that is mapped of a file; return how many bytes.

    Raises:
        OSError: There is not so much memory, or a range was let go of meanwhile.
    """
    num_bytes = 0
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for found in _find_ranges(facts):
            place = _copy(memory.fileno(), found)
            try:
                if found not in _find_ranges(facts):
                    raise OSError("it was let go of meanwhile")
                # One step for the kernel: nobody who reads there meets a hole.
                sizes = (found.size_bytes, found.size_bytes)
                _check(_library().mremap(place, *sizes, _MREMAP_MAYMOVE_FIXED, found.start))
            except OSError:
                _library().munmap(place, found.size_bytes)
                raise
            num_bytes += found.size_bytes
    return num_bytes


@functools.cache
def _library() -> ctypes.CDLL:
    """Return the C library with the signatures of what is called here."""
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = library.mremap.restype = pointer
    library.mmap.argtypes = [pointer, size, number, number, number, ctypes.c_long]
    library.mremap.argtypes = [pointer, size, size, number, pointer]
    library.mprotect.argtypes = [pointer, size, number]
    library.munmap.argtypes = [pointer, size]
    return library


def _check(address: int) -> None:
    if address in (-1, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _copy(memory: int, found: _Range) -> int:
    """Return the address of a copy; read by the kernel, for which a hole is an error, no crash."""
    library, size_bytes = _library(), found.size_bytes
    rights, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    place = library.mmap(None, size_bytes, rights, kind, -1, 0)
    _check(place)
    try:
        target = memoryview((ctypes.c_char * size_bytes).from_address(place)).cast("B")
        done = 0
        while done < size_bytes:
            part = target[done : done + _COPY_BYTES]
            done += os.preadv(memory, [part], found.start + done)
        _check(library.mprotect(place, size_bytes, found.protection))
    except OSError:
        library.munmap(place, size_bytes)
        raise
    return int(place)


def _find_ranges(facts: os.stat_result) -> list[_Range]:
    """Return where this process has a file mapped."""
    device = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}"
    found = []
    for line in Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines():
        span, rights, _, on, inode, *_ = line.split(maxsplit=5)
        if (on, inode) != (device, str(facts.st_ino)):
            continue
        start, end = (int(value, 16) for value in span.split("-"))
        bits = {"r": mmap.PROT_READ, "w": mmap.PROT_WRITE, "x": mmap.PROT_EXEC}
        protection = sum(bit for letter, bit in bits.items() if letter in rights)
        found.append(_Range(start, end - start, protection))
    return found
