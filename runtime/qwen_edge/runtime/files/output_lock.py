"""One writer at a time per target: a lock that the system lets go of when its holder dies.

The lock is a file beside the target, so that it is the same file for every process, user and
TMPDIR. It holds the process id of the holder and is removed with the lock. It does not know
what is locked.
"""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from qwen_edge.errors import OutputFolderError

_log = logging.getLogger(__name__)
_HELD = frozenset({errno.EACCES, errno.EAGAIN, errno.EDEADLK, errno.EWOULDBLOCK})
# Windows keeps others from reading locked bytes, so one far behind the process id is locked.
_LOCKED_BYTE = 1 << 30


@contextlib.contextmanager
def lock_output(target: Path, writer: str = "export") -> Iterator[None]:
    """Hold the lock of one target, or refuse at once.

    Args:
        target: The folder to be; its parent exists and can be written to.
        writer: What the refusal calls the holder.

    Raises:
        OutputFolderError: Another process holds it; the text names its process id.

    State:
        `.<name>.lock` beside the target while the lock is held. What a killed process leaves
        of it does no harm, and the next holder removes it.
    """
    path = target.with_name(f".{target.name}.lock")
    file = _acquire(path)
    if file is None:
        pid = _read_pid(path)
        holder = f" (process {pid})" if pid else ""
        raise OutputFolderError(
            f"Another {writer} is writing to {str(target)!r}{holder}.",
            "wait until it is done, or choose another place with --output DIR",
            folder=str(target),
            pid=pid,
        )
    try:
        file.truncate(0)
        file.write(str(os.getpid()).encode("ascii"))
        yield
    finally:
        _release(file, path)


def _acquire(path: Path) -> io.FileIO | None:
    """Return an open file that holds the lock, or None when another process has it.

    A file and no descriptor: what Ctrl-C takes from its owner closes itself, and a process that
    goes on, as a notebook does, has not locked itself out.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        file = _open(path, flags)
        try:
            _lock(file.fileno())
        except OSError as exc:
            if exc.errno in _HELD:
                file.close()
                return None
            # Some network file systems have no locks; then two writers are not kept apart.
            _log.warning("%s cannot be locked: %s", path.parent, exc.strerror or exc)
        # Its last holder may have removed the file after it was opened here: such a lock
        # would keep nobody out.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _open(path: Path, flags: int) -> io.FileIO:
    try:
        return io.FileIO(path, "r+b", opener=lambda name, _: os.open(name, flags, 0o666))
    except OSError as exc:
        raise OutputFolderError(
            f"The lock file {str(path)!r} cannot be written: {exc.strerror or exc}.",
            "remove it, or choose another place with --output DIR",
            path=str(path),
        ) from exc


def _release(file: io.FileIO, path: Path) -> None:
    if sys.platform == "win32":
        file.close()  # an open file cannot be removed there, and one in use will not be
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _read_pid(path: Path) -> int | None:
    """Return the holder's process id, or None where it has not written it yet."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_bytes()[:20])
    return None
