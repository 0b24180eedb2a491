"""SHA256SUMS: the hash of every file of a bundle, in the form that `sha256sum -c` reads."""

import os
from pathlib import Path

from qwen_edge.errors import PackageError, join_problems
from qwen_edge.runtime.files.writing import write_text
from qwen_edge.runtime.package import Progress, hash_file

SUMS_NAME = "SHA256SUMS"
_COPY_AGAIN = "copy the bundle again from where it came from"


def list_files(root: Path) -> list[str]:
    """Return the names of all files below a folder, as paths with "/", sorted.

    Folders that somebody put there count by what is in them; links are files, whatever they
    lead to.
    """
    names = []
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in [*files, *links]]
    return sorted(names)


def write_sums(root: Path, progress: Progress | None = None) -> dict[str, str]:
    """Hash all files below a folder and write the list into it.

    Args:
        root: The bundle's folder.
        progress: Called with bytes hashed since the last call.

    Returns:
        File → its SHA-256.
    """
    digests = {
        name: hash_file(root / name, progress).sha256
        for name in list_files(root)
        if name != SUMS_NAME
    }
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    write_text(root / SUMS_NAME, "".join(lines))
    return digests


def read_sums(root: Path) -> dict[str, str]:
    """Return the list of a bundle: file → SHA-256.

    Raises:
        PackageError: There is none, or it is not one.
    """
    try:
        lines = (root / SUMS_NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise PackageError(
            f"The list of this bundle's files, {SUMS_NAME!r}, cannot be read.", _COPY_AGAIN
        ) from error
    digests = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise PackageError(f"{SUMS_NAME!r} has a line that is none: {line!r:.80}.", _COPY_AGAIN)
        digests[name] = digest
    return digests


def check_sums(root: Path, *, without: str) -> int:
    """Check that a bundle's files are those that it was made with.

    Args:
        root: The bundle's folder.
        without: A folder of it that is checked otherwise, such as "model/".

    Returns:
        How many files were hashed.

    Raises:
        PackageError: Files are missing, changed or were added; all are named.
    """
    expected = read_sums(root)
    listed = {name for name in expected if not name.startswith(without)}
    present = {name for name in list_files(root) if not name.startswith(without)} - {SUMS_NAME}
    problems = [f"{name!r} is missing" for name in sorted(listed - present)]
    for name in sorted(listed & present):
        path = root / name
        if path.is_symlink() or hash_file(path).sha256 != expected[name]:
            problems.append(f"{name!r} is not the file that it was")
    problems += [f"{name!r} was added" for name in sorted(present - listed)]
    if problems:
        raise PackageError(
            f"This bundle is not as it was made: {join_problems(problems)}.",
            _COPY_AGAIN,
            problems=tuple(problems),
        )
    return len(listed)
