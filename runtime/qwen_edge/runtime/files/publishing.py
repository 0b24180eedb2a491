"""Putting a finished folder in its place: all of it or nothing.

It is made beside its target, forced to the disk, and swapped with what is there in one step of
the file system. Where there is no such step (Windows, some network file systems) the earlier
folder is renamed first: an interruption between the two renamings leaves it under its other name,
and the next writer brings it back. This module does not know what is in the folder.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from qwen_edge.errors import OutputFolderError
from qwen_edge.runtime.files.output_lock import lock_output
from qwen_edge.runtime.files.writing import (
    get_disk,
    make_folder,
    remove,
    remove_file,
    rename,
    sync,
)

_LOGGER = logging.getLogger(__name__)
_STAGING_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
"""Where the earlier folder is between two renamings: `.NAME.replaced`."""

IsOurs = Callable[[Path], bool]
"""Whether a folder holds what names it as ours, whole or not."""


@contextlib.contextmanager
def staging_folder(target: Path, is_ours: IsOurs, writer: str) -> Iterator[Path]:
    """Lock a target, make an empty folder beside it, and remove that whatever happens.

    Args:
        target: The folder to be; absolute.
        is_ours: Tells a folder that may be brought back or discarded.
        writer: What a refusal calls another process that writes there.

    Yields:
        The folder to fill; `publish_folder` takes it.

    Raises:
        OutputFolderError: Another process writes there.

    State:
        What an interrupted writer left beside the target is removed, or brought back, first.
    """
    folder = target.with_name(f".{target.name}{_STAGING_SUFFIX}")
    with lock_output(target, writer):
        _recover(target, is_ours)
        try:
            remove(folder)
            make_folder(folder)
            yield folder
        finally:
            remove(folder)


def publish_folder(folder: Path, target: Path, *, name_last: str) -> None:
    """Force a finished folder to the disk and put it in its place.

    Args:
        folder: Complete; lies beside the target, on the same file system.
        target: Free, empty, or an earlier folder that may be replaced.
        name_last: The file that makes it complete: forced to the disk last, removed first.

    Raises:
        OutputFolderError: A program has the earlier folder open.
        OSError: The disk refuses. The earlier folder is in its place.

    State:
        The target is the new folder afterwards.
    """
    _sync_tree(folder, name_last)
    if not os.path.lexists(target):
        _move(folder, target, name_last)
        return
    replaced = _replaced_name(target)
    is_swapped = False
    try:
        is_swapped = _exchange(folder, target)
        if not is_swapped:
            _rename_away(target, replaced)
            rename(folder, target)
        sync(target.parent)
    except BaseException:  # Ctrl-C as well
        with contextlib.suppress(OSError):
            _put_back(folder, target, replaced, is_swapped=is_swapped)
        raise
    _discard(folder if is_swapped else replaced, name_last)


def _move(folder: Path, target: Path, name_last: str) -> None:
    rename(folder, target)
    try:
        sync(target.parent)
    except BaseException:
        _discard(target, name_last)
        raise


def _exchange(folder: Path, target: Path) -> bool:
    try:
        return get_disk().exchange(folder, target)
    except PermissionError as exc:
        raise _in_use(target, exc) from exc


def _put_back(folder: Path, target: Path, replaced: Path, *, is_swapped: bool) -> None:
    """Give the earlier folder its name again."""
    if is_swapped:
        get_disk().exchange(folder, target)
    elif replaced.is_dir():
        if os.path.lexists(target):
            rename(target, folder)
        rename(replaced, target)


def _replaced_name(target: Path) -> Path:
    return target.with_name(f".{target.name}{REPLACED_SUFFIX}")


def _recover(target: Path, is_ours: IsOurs) -> None:
    """Bring back a folder that an interruption left under its other name."""
    replaced = _replaced_name(target)
    if not replaced.is_dir():
        return
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        get_disk().remove_folder(target)
    if not is_ours(replaced):
        remove(replaced)  # half discarded already
    elif not os.path.lexists(target):
        rename(replaced, target)
        _LOGGER.warning("an interrupted run had moved %s away; it is back", target)
    elif is_ours(target):
        remove(replaced)
    # Anything else at the target is refused by the writer, and the folder stays there.


def _rename_away(target: Path, replaced: Path) -> None:
    remove(replaced)
    try:
        rename(target, replaced)
    except PermissionError as exc:
        # Windows refuses while a program has one of the files open.
        raise _in_use(target, exc) from exc


def _in_use(target: Path, error: OSError) -> OutputFolderError:
    return OutputFolderError(
        f"{str(target)!r} cannot be replaced: {error.strerror or error}. A program may be running "
        "it. It was left as it is.",
        "close the program, or choose another place with --output DIR",
        folder=str(target),
    )


def _discard(folder: Path, name_last: str) -> None:
    """Remove a folder, its mark first: half of one must not look like a whole one."""
    with contextlib.suppress(OSError):
        remove_file(folder / name_last)
    remove(folder)


def _sync_tree(folder: Path, name_last: str) -> None:
    """Force every file and every list of names to the disk, the mark last."""
    for parent, names, files in os.walk(folder, topdown=False):
        for name in sorted(files):
            path = Path(parent) / name
            if path != folder / name_last and not path.is_symlink():
                sync(path)
        names.sort()
        if Path(parent) != folder:
            sync(Path(parent))
    sync(folder / name_last)
    sync(folder)
