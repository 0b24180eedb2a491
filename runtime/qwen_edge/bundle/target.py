"""Putting a finished bundle in its place: all of it or nothing.

It is made in a folder beside its target and put there at the end
(`runtime/files/publishing.py`). An interruption leaves the
earlier bundle or none, and at most a folder whose name says whose it is; the next bundle to the
same place removes that. What is there and not a bundle of ours is never replaced.
"""

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from qwen_edge.bundle.sums import SUMS_NAME, list_files, read_sums
from qwen_edge.errors import OutputFolderError, PackageError, ResourceError, format_bytes
from qwen_edge.runtime.files.publishing import publish_folder, staging_folder
from qwen_edge.runtime.files.writing import DISK_FULL

FORMAT = "qwen-edge-bundle"
FACTS_NAME = "bundle.json"
_ELSEWHERE = "choose another place with --output DIR"
_MAX_FACTS_BYTES = 1 << 20


def zip_of(target: Path) -> Path:
    """Return the zip's path beside a bundle folder."""
    return target.with_name(f"{target.name}.zip")


def check_target(target: Path, *, force: bool, as_zip: bool) -> None:
    """Refuse a place that a bundle may not be put into.

    Args:
        target: The folder to be.
        force: An earlier bundle may be replaced.
        as_zip: A zip beside it as well.

    Raises:
        OutputFolderError: Says what is there, or why nothing can be.
    """
    if not target.parent.is_dir():
        raise OutputFolderError(
            f"The folder {str(target.parent)!r}, where the bundle should go, does not exist.",
            f'create it first: mkdir "{target.parent}"',
            folder=str(target.parent),
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputFolderError(
            f"The folder {str(target.parent)!r} cannot be written to.",
            _ELSEWHERE,
            folder=str(target.parent),
        )
    if os.path.lexists(target):
        _check_folder(target, force=force)
    if as_zip and os.path.lexists(zip_of(target)):
        _check_zip(zip_of(target), force=force)


def _check_folder(target: Path, *, force: bool) -> None:
    if target.is_symlink() or not target.is_dir():
        raise _not_replaced(target, "exists and is not a folder")
    if not any(target.iterdir()):
        return
    if not _is_ours(target):
        raise _not_replaced(target, "holds other things than a bundle")
    if not force:
        raise _exists(target)
    try:
        foreign = sorted(set(list_files(target)) - read_sums(target).keys() - {SUMS_NAME})
    except PackageError:
        foreign = []  # a damaged bundle is one nevertheless
    if foreign:
        raise _not_replaced(
            target, f"is a bundle that also holds {foreign[0]!r}, which would be lost"
        )


def _check_zip(path: Path, *, force: bool) -> None:
    top = path.name.removesuffix(".zip")
    try:
        with zipfile.ZipFile(path) as archive:
            is_ours = f"{top}/{FACTS_NAME}" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        is_ours = False
    if not is_ours:
        raise _not_replaced(path, "exists and is not a bundle of this name")
    if not force:
        raise _exists(path)


def _is_ours(folder: Path) -> bool:
    path = folder / FACTS_NAME
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_FACTS_BYTES:
            return False
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and facts.get("format") == FORMAT


def _exists(path: Path) -> OutputFolderError:
    return OutputFolderError(
        f"{str(path)!r} already holds a bundle.",
        "replace it with --force, or choose another place with --output DIR",
        folder=str(path),
    )


def _not_replaced(path: Path, what: str) -> OutputFolderError:
    return OutputFolderError(
        f"{str(path)!r} {what}. It is not replaced, not even with --force.",
        _ELSEWHERE,
        folder=str(path),
    )


def check_space(parent: Path, needed_bytes: int) -> None:
    """Refuse to start where the disk is too small.

    Args:
        parent: A folder on it.
        needed_bytes: Most that will be written there.

    Raises:
        ResourceError: With needed and free space.
    """
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise ResourceError(
            f"The bundle needs {format_bytes(needed_bytes)} of free disk at {str(parent)!r}, which "
            f"has {format_bytes(free_bytes)}. Nothing was written.",
            f"free {format_bytes(needed_bytes - free_bytes)}, or write to another disk with "
            "--output DIR",
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
        )


@contextlib.contextmanager
def stage(target: Path) -> Iterator[Path]:
    """Make an empty folder beside a target and remove it whatever happens.

    Args:
        target: The bundle folder to be.

    Yields:
        The folder to fill; `publish` takes it.

    Raises:
        OutputFolderError: Another process makes a bundle there.
        ResourceError: The disk filled up.

    State:
        What an interrupted bundle left at this place is removed first.
    """
    try:
        with staging_folder(target, _is_ours, "process") as folder:
            yield folder
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ResourceError(
            f"The disk of {str(target.parent)!r} filled up. What was written is removed.",
            "free some space, or write to another disk with --output DIR",
            free_bytes=shutil.disk_usage(target.parent).free,
        ) from error


def publish(folder: Path, target: Path) -> None:
    """Force a finished folder to the disk and put it in its place.

    Args:
        folder: The staged one, complete.
        target: Free, empty, or an earlier bundle that may be replaced.

    State:
        The target is the new bundle afterwards; where that fails, the old one.
    """
    publish_folder(folder, target, name_last=FACTS_NAME)
