"""Writing, copying, renaming and removing: all of it through one `Disk`.

Nothing here is safe against an interruption by itself. Who writes a folder that others read goes
through `publishing.py`, who replaces one file through `replacing.py`.
"""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from qwen_edge.runtime.files.disk import Disk

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""Error numbers that mean: no more room for this file."""
_BUFFER_BYTES = 1 << 20


class _Layer:
    """What stands between this project and the operating system."""

    disk = Disk()


_layer = _Layer()


def get_disk() -> Disk:
    """Return what all changes go through."""
    return _layer.disk


@contextlib.contextmanager
def using_disk(disk: Disk) -> Iterator[None]:
    """Let all changes go through another disk for a while; for tests."""
    before, _layer.disk = _layer.disk, disk
    try:
        yield
    finally:
        _layer.disk = before


def open_for_writing(path: Path, *, is_new: bool = False) -> BinaryIO:
    """Open a file for writing, empty.

    Args:
        path: The file; what it holds is gone.
        is_new: It must not exist.

    Raises:
        OSError: It cannot be made.
    """
    return io.BufferedWriter(_RawFile(path, is_new=is_new), _BUFFER_BYTES)


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file.

    Raises:
        OSError: It cannot be made, or the disk is full.
    """
    with open_for_writing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole file as UTF-8, with the same line ends on every system.

    Raises:
        OSError: It cannot be made, or the disk is full.
    """
    write_file(path, text.encode("utf-8"))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, but neither its times nor its rights.

    Raises:
        OSError: One cannot be read, or the other not be written.
    """
    with source.open("rb", buffering=0) as file, open_for_writing(target) as copy:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while count := file.readinto(buffer):
            copy.write(buffer[:count])


def note_written(*paths: Path) -> None:
    """Say that an engine has written files by itself: no layer of ours has seen that."""
    for path in paths:
        _layer.disk.note(path)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk.

    Raises:
        OSError: The disk refuses, and what was written may be lost.
    """
    _layer.disk.sync(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; one that exists is left as it is.

    Raises:
        OSError: It cannot be made, or a file is in its place.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        _layer.disk.make_folder(path)
    except FileExistsError:
        if not path.is_dir():  # another process was faster
            raise


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name, in the place of a file or empty folder there.

    Raises:
        OSError: The system refuses, for instance across file systems.
    """
    _layer.disk.rename(path, target)


def remove_file(path: Path) -> bool:
    """Remove a file or link and return whether there was one.

    Raises:
        OSError: The system refuses.
    """
    try:
        _layer.disk.remove_file(path)
    except FileNotFoundError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file, link or folder with all that is in it, as far as the system lets us."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            for entry in sorted(path.iterdir()):
                remove(entry)
        with contextlib.suppress(OSError):
            _layer.disk.remove_folder(path)
        return
    try:
        remove_file(path)
    except PermissionError:  # Windows does not remove a file that is marked read-only
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IWRITE | stat.S_IREAD)
            _layer.disk.remove_file(path)
    except OSError:
        return


class _RawFile(io.FileIO):
    """A file that is written and closed through the disk.

    Everything else is FileIO's own. `io.BufferedWriter` asks for the place when it is made and
    drops whatever that raises: written in Python, `tell` lost a Ctrl-C that came in it.
    """

    def __init__(self, path: Path, *, is_new: bool) -> None:
        super().__init__(_layer.disk.create(path, is_new=is_new), "wb", closefd=False)
        self.name = os.fspath(path)

    def write(self, data: "ReadableBuffer") -> int:
        return _layer.disk.write(self.fileno(), memoryview(data).cast("B"))

    def close(self) -> None:
        if not self.closed:
            descriptor = self.fileno()
            super().close()
            _layer.disk.close(descriptor)
