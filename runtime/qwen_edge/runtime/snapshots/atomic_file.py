"""Writing one file so that there is the whole of it or what was there before.

The bytes go to a file beside it, are forced to the disk, and that file takes the other's name. A
kill leaves at most the file beside, which a later writing to the same name removes.
"""

import contextlib
import errno
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from qwen_edge.errors import ResourceError, UsageError

_LOGGER = logging.getLogger(__name__)
_SUFFIX = ".partial"
_STALE_S = 3600.0  # no file takes an hour to write: whoever began it is gone
_DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file in the place of an earlier one, or leave everything as it was.

    Args:
        path: Its folder must exist.
        write: Is given an empty file, and writes it.

    Raises:
        UsageError: The folder does not exist, or nothing may be written there.
        ResourceError: The disk is full, or refuses to be written.
    """
    _remove_stale(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        with partial.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _describe(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _describe(path: Path, error: OSError) -> UsageError | ResourceError:
    reason = error.strerror or str(error)
    if error.errno in _DISK_FULL:
        return ResourceError(
            f"The disk of {str(path.parent)!r} filled up while {path.name!r} was written. "
            "What was there before is as it was.",
            "free some space, or write to another disk.",
            path=str(path),
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UsageError(
            f"The folder {str(path.parent)!r}, where {path.name!r} should go, does not exist.",
            "create it first.",
            path=str(path),
        )
    if isinstance(error, PermissionError | IsADirectoryError):
        return UsageError(
            f"{str(path)!r} cannot be written: {reason}.", "choose another place.", path=str(path)
        )
    return ResourceError(
        f"{str(path)!r} could not be written: {reason}. What was there before is as it was.",
        "check the disk, or write to another one.",
        path=str(path),
    )


def _remove_stale(path: Path) -> None:
    """Remove what a killed process left of an earlier writing to the same name."""
    prefix = f".{path.name}."
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            is_ours = entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX)
            if is_ours and time.time() - entry.stat().st_mtime > _STALE_S:
                _LOGGER.info("Removing %s, which an interruption left", entry.name)
                Path(entry.path).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
