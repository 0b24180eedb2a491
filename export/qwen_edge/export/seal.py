"""Putting a finished package in its place: all of it or nothing.

A package is written into a staging folder beside its target, forced to the disk, and
renamed into place (`runtime/files/publishing.py`). An interruption at any point leaves the earlier
package or none, and at most a staging folder whose name says whose it is, which the next export
removes. This module decides which folders may be replaced; it does not know what is in a package.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.errors import OutputFolderError, ResourceError, format_bytes
from qwen_edge.runtime.files.publishing import publish_folder, staging_folder
from qwen_edge.runtime.files.writing import DISK_FULL
from qwen_edge.runtime.manifest import FORMAT, MANIFEST_NAME
from qwen_edge.runtime.package import SIGNATURE_NAME

_MAX_MANIFEST_BYTES = 4 << 20  # more than `read_manifest` takes
_SMALL_DISK_BYTES = 64_000_000  # an engine's error may name no cause; less than this free is one
_DISK_FAULTS = frozenset({errno.EIO, errno.EROFS, errno.ENXIO})


@dataclass(frozen=True)
class Staging:
    """A folder to write a package into.

    Args:
        folder: Empty; lies beside `target`, on the same file system.
        target: Where `publish` puts it.
        force: An earlier package of ours may be replaced.
    """

    folder: Path
    target: Path
    force: bool


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target folder that this export may not create or replace.

    Args:
        target: The package folder to be.
        force: An earlier package of ours may be replaced.

    Raises:
        OutputFolderError: The target exists and is not ours, or is ours and `force` is not
            given, or its parent does not exist or cannot be written to.
    """
    _check_parent(target.parent)
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise _not_replaced(target, "exists and is not a folder")
    try:
        names = {path.name for path in target.iterdir()}
    except OSError as exc:
        raise _not_replaced(target, f"cannot be read ({exc.strerror or exc})") from exc
    if not names:
        return
    manifest = _read_our_manifest(target)
    if manifest is None:
        count = f"{len(names):,} {'entry' if len(names) == 1 else 'entries'}"
        raise _not_replaced(target, f"holds {count} and no {MANIFEST_NAME!r} of ours")
    if not force:
        raise OutputFolderError(
            f"{str(target)!r} already holds a package ({manifest.get('name')!r:.100}).",
            "replace it with --force, or choose another place with --output DIR",
            folder=str(target),
        )
    files = manifest.get("files")
    # A signature is that of the package that goes; whoever has the key signs the new one.
    ours = {MANIFEST_NAME, SIGNATURE_NAME, *(files if isinstance(files, dict) else ())}
    foreign = sorted(names - ours)
    if foreign:
        raise _not_replaced(
            target,
            f"is a package that also holds {foreign[0]!r}, which is not listed in its manifest "
            "and would be lost",
            "move that away, or choose another place with --output DIR",
        )


def _check_parent(parent: Path) -> None:
    if not parent.is_dir():
        raise OutputFolderError(
            f"The folder {str(parent)!r}, where the package should go, does not exist.",
            f"create it first: mkdir {_quoted(parent)}",
            folder=str(parent),
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputFolderError(
            f"The folder {str(parent)!r} cannot be written to.",
            "choose another place with --output DIR",
            folder=str(parent),
        )


def _not_replaced(
    target: Path, what: str, fix: str = "choose another place with --output DIR"
) -> OutputFolderError:
    return OutputFolderError(
        f"{str(target)!r} {what}. It is not replaced, not even with --force.",
        fix,
        folder=str(target),
    )


def _read_our_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a manifest that says it is ours, whatever its version, or None.

    Web pages and browser extensions have a manifest.json as well: the name proves nothing.
    """
    path = folder / MANIFEST_NAME
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > _MAX_MANIFEST_BYTES:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _is_ours(folder: Path) -> bool:
    return _read_our_manifest(folder) is not None


@contextlib.contextmanager
def stage(target: Path, *, force: bool) -> Iterator[Staging]:
    """Lock a target, make its staging folder, and clean up whatever happens.

    Args:
        target: The package folder to be.
        force: An earlier package of ours may be replaced.

    Yields:
        The staging folder. Call `publish` on it; without that the target stays as it was.

    Raises:
        OutputFolderError: See `check_target`; or another export is writing there.
        ResourceError: The disk filled up while the package was written.

    State:
        Removes what an interrupted export left beside the target. On the way out, error or
        not, the staging folder is gone.
    """
    # Not `resolve`, which would follow a link at the target to what must not be replaced.
    target = Path(os.path.abspath(target))  # noqa: PTH100
    check_target(target, force=True)
    try:
        with staging_folder(target, _is_ours, "export") as folder:
            check_target(target, force=force)
            yield Staging(folder, target, force)
    except OSError as exc:
        _raise_for_disk(exc, target)
        raise


def _raise_for_disk(error: OSError, target: Path) -> None:
    """Raise what a person can act on for an error of the disk; return for any other."""
    if error.errno in DISK_FULL:
        raise disk_full(target.parent) from error
    if error.errno in _DISK_FAULTS:
        raise ResourceError(
            f"The disk of {str(target.parent)!r} could not be written: "
            f"{error.strerror or error}. Nothing was published, the target is as it was.",
            "check the disk, or write to another one with --output DIR",
            errno=error.errno,
        ) from error


def publish(staging: Staging) -> None:
    """Force a staged package to the disk and rename it into place.

    Args:
        staging: Complete, with its manifest.

    Raises:
        OutputFolderError: The target has become something that may not be replaced, or a
            program has the old package open.

    State:
        The target is the new package afterwards. If the last step fails, it is the old one.
    """
    # A second look: building took minutes, in which anything may have appeared there.
    check_target(staging.target, force=staging.force)
    publish_folder(staging.folder, staging.target, name_last=MANIFEST_NAME)


def check_disk(parent: Path, needed_bytes: int) -> None:
    """Refuse to start when the disk is too small.

    Args:
        parent: A folder on the file system in question; may not exist yet.
        needed_bytes: Most that will be written there at one time.

    Raises:
        ResourceError: With needed and free space.
    """
    while not parent.exists():
        parent = parent.parent
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise ResourceError(
            f"The export needs {format_bytes(needed_bytes)} of free disk at {str(parent)!r}, which "
            f"has {format_bytes(free_bytes)}. Nothing was written.",
            f"free {format_bytes(needed_bytes - free_bytes)}, or write to another disk with "
            "--output DIR",
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
        )


def _quoted(path: Path) -> str:
    text = str(path)
    return f'"{text}"' if " " in text else text


def disk_full(parent: Path) -> ResourceError:
    """Return the error for a disk that filled up while a staging folder in it was written."""
    free_bytes = shutil.disk_usage(parent).free
    return ResourceError(
        f"The disk of {str(parent)!r} filled up while the package was written; "
        f"{format_bytes(free_bytes)} are free. What was written is removed, the target is as it "
        "was.",
        "free some space, or write to another disk with --output DIR",
        free_bytes=free_bytes,
    )


def raise_for_full_disk(folder: Path, cause: Exception) -> None:
    """Raise ResourceError when an engine's write error was a full disk; else return."""
    is_small = shutil.disk_usage(folder).free < _SMALL_DISK_BYTES
    if is_small or "iostream" in str(cause) or f"[Errno {errno.ENOSPC}]" in str(cause):
        raise disk_full(folder.parent) from cause
