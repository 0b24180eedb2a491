"""Writing one file so that there is the whole of it or what was there before.

The bytes go to a file beside it, are forced to the disk, and that file takes the other's name. A
kill leaves at most the file beside, which a later writing to the same name removes.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from qwen_edge.errors import ResourceError, UsageError
from qwen_edge.runtime.files.writing import (
    DISK_FULL,
    open_for_writing,
    remove_file,
    rename,
    sync,
)

_LOGGER = logging.getLogger(__name__)
_SUFFIX = ".partial"
_STALE_S = 3600.0  # no file takes an hour to write: whoever began it is gone


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file in the place of an earlier one, or leave everything as it was.

    Args:
        path: Its folder must exist.
        write: Is given an empty file, and writes it.

    Raises:
        UsageError: The folder does not exist, or nothing may be written there.
        ResourceError: The disk is full, or refuses to be written.
    """
    try:
        replace_file(path, write)
    except OSError as error:
        raise _describe(path, error) from error


def replace_file(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Do the same, but let the system's error through.

    Args:
        path: Its folder must exist.
        write: Is given an empty file, and writes it.
        durable: Wait for the disk. Without, a power cut may leave an empty file under the name:
            for what is checked when it is read and can be made again.

    Raises:
        OSError: The system refuses.
    """
    _remove_stale(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        with open_for_writing(partial, is_new=True) as stream:
            write(stream)
        if durable:
            sync(partial)
        rename(partial, path)
        if durable:
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            remove_file(partial)


def replace_content(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Do the same with bytes that are there already."""
    replace_file(path, lambda stream: stream.write(content), durable=durable)


def _describe(path: Path, error: OSError) -> UsageError | ResourceError:
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL:
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
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            is_ours = entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX)
            if is_ours and time.time() - entry.stat().st_mtime > _STALE_S:
                _LOGGER.info("Removing %s, which an interruption left", entry.name)
                remove_file(Path(entry.path))
