"""The operating system's calls that change a disk, one method each.

All writing goes through the one `Disk` that `writing.get_disk` returns. A test puts another in its
place, which counts the calls, lets the n-th fail, ends the process at the n-th, or records them all
to replay what a power cut would have left. It does not know what is written.

Source:
    The way of SQLite's tests: the operating system behind one layer, every call of it made to
    fail once. renameat2: Linux man-pages 6. renamex_np: macOS manual, section 2.
"""

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

_NEW = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_SWAP = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_HERE = -100  # AT_FDCWD of Linux
# File systems without it, such as NFS; a kernel or a sandbox without it.
_NO_SWAP = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


class Disk:
    """Changes files and folders; every method raises OSError where the system does."""

    def create(self, path: Path, *, is_new: bool = False) -> int:
        """Open a file for writing, empty, and return its descriptor.

        Args:
            path: The file.
            is_new: It must not exist.
        """
        return os.open(path, _NEW | (os.O_EXCL if is_new else os.O_TRUNC), 0o666)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Write bytes and return how many of them were."""
        return os.write(descriptor, data)

    def close(self, descriptor: int) -> None:
        """Close a file that `create` opened."""
        os.close(descriptor)

    def note(self, path: Path) -> None:
        """Hear of a file that an engine has written by itself."""

    def sync(self, path: Path) -> None:
        """Force a file's bytes, or a folder's list of names, to the disk."""
        is_folder = path.is_dir()
        if is_folder and os.name == "nt":
            return  # Windows has no such call for folders; NTFS journals the names
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        """Make one folder, whose parent exists."""
        path.mkdir()

    def rename(self, path: Path, target: Path) -> None:
        """Give a file or folder another name, in the place of a file or empty folder there."""
        os.replace(path, target)

    def exchange(self, path: Path, other: Path) -> bool:
        """Swap the names of two files or folders in one step.

        Returns:
            False where system or file system have no such step; nothing has changed then.
        """
        swap = _load_swap()
        if swap is None:
            return False
        if swap(os.fsencode(path), os.fsencode(other)) == 0:
            return True
        number = ctypes.get_errno()
        if number in _NO_SWAP:
            return False
        raise OSError(number, os.strerror(number), str(path), None, str(other))

    def remove_file(self, path: Path) -> None:
        """Remove a file or link."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()


@functools.cache
def _load_swap() -> Callable[[bytes, bytes], int] | None:
    """Return the C library's call that swaps two names, or None where it has none."""
    if sys.platform not in ("linux", "darwin"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    text, number = ctypes.c_char_p, ctypes.c_int
    try:
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes = (text, text, ctypes.c_uint)
            return lambda path, other: int(swap(path, other, _SWAP))
        swap = library.renameat2
    except AttributeError:  # a C library of before 2018
        return None
    swap.argtypes = (number, text, number, text, ctypes.c_uint)
    return lambda path, other: int(swap(_HERE, path, _HERE, other, _SWAP))
