"""From a name that stands in a file to a path: the one door.

An index, a manifest, a listing of a hub or of a wheel names other files, and is a stranger's claim.
Whatever it says, no path leads out of the folder, and what is opened is a regular file: a pipe
would block for ever, a device never end, a link lead elsewhere.
"""

import re
import stat
from pathlib import Path

from qwen_edge.errors import PackageError
from qwen_edge.runtime.files.plain_name import check_plain_name

_COPY_AGAIN = "copy the folder again from where it came from, or export the package again."
# Separators, drives and streams of any system, and what no file system takes.
_FOREIGN = re.compile(r"[\\:\x00-\x1f]")


class OutsideError(ValueError):
    """A name leads out of its folder, or would on another system."""


def why_outside(name: str) -> str | None:
    """Return why a name may not be joined to a folder, or None where it may.

    Args:
        name: One or several parts, joined by "/".
    """
    if _FOREIGN.search(name):
        return "has a character that names have not on every system"
    if not all(part and part.strip(". ") for part in name.split("/")):
        return "leads out of its folder"
    return None


def inside(folder: Path, name: str) -> Path:
    """Return the path of a name below a folder; nothing is opened.

    Args:
        folder: Where it must stay.
        name: One or several parts, joined by "/".

    Raises:
        OutsideError: It is absolute, has a part such as "..", or one that is none on other systems.
    """
    reason = why_outside(name)
    if reason:
        raise OutsideError(f"the name {name[:80]!r} {reason}")
    return folder / name


def open_inside(folder: Path, name: str) -> Path:
    """Return the path of a regular file directly inside a package folder.

    Args:
        folder: The package folder.
        name: One plain file name, checked here whatever wrote it.

    Raises:
        PackageError: The name is not plain, or it is missing, a symlink, folder or device.
    """
    reason = check_plain_name(name)
    if reason:
        raise PackageError(f"The name {name[:80]!r} {reason}.", _COPY_AGAIN, name=name)
    path = folder / name
    what = why_not_regular(path)
    if what:
        raise PackageError(f"{str(path)!r} {what}.", _COPY_AGAIN, path=str(path))
    return path


def why_not_regular(path: Path) -> str | None:
    """Return what a path is instead of a regular file, or None; it is not opened."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISLNK(mode):
        return "is a symbolic link, expected a copy of the file itself"
    if stat.S_ISDIR(mode):
        return "is a folder, expected a file"
    return "is a pipe, socket or device, expected a file"


def why_shared(path: Path) -> str | None:
    """Return that a file is a hard link, which ONNX Runtime would follow out of the folder."""
    if path.lstat().st_nlink > 1:
        return "is a hard link to a file that stands elsewhere too, expected a copy of its own"
    return None
