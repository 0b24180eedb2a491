"""A model package on disk: find it, read its manifest, prove that its files are the sealed ones.

A package is a plain folder of regular files. `manifest.json` lists every other file with its
size and SHA-256; what is missing, changed or not listed is refused. Nothing here follows a
symlink, opens a device or leaves the folder. This module knows no engine and no device; read
`manifest.py` for the keys and `verified.py` for how a full check is remembered.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import PackageError, format_bytes, join_problems
from qwen_edge.runtime.files.opening import inside, why_not_regular, why_shared
from qwen_edge.runtime.files.publishing import REPLACED_SUFFIX
from qwen_edge.runtime.files.writing import sync, write_file
from qwen_edge.runtime.manifest import FORMAT_FILES, MANIFEST_NAME, FileFacts, Manifest

_CHUNK_BYTES = 4 << 20  # large enough that hashing, not reading, sets the pace
_MAX_MANIFEST_BYTES = 4 << 20  # a real one has under 20 kB
TUNED_NAME = "tuned.json"
"""Settings tuned for certain machines, where a package brings some; see `tuning`."""
SIGNATURE_NAME = "model.sig"
"""Whoever signed a package; opened by nobody but who checks it, see `signature.py`."""
# What file managers, git and hub clients leave in any folder that somebody looks at or clones.
# None of it is ever opened by this project or an engine.
_LITTER = frozenset(
    {".DS_Store", ".cache", ".git", ".gitattributes", ".gitignore", "Thumbs.db", "desktop.ini"}
)
# What a killed writer leaves of these files; unlisted, nobody opens it either.
_HALF_WRITTEN = re.compile(
    rf"{TUNED_NAME}|\.(?:{TUNED_NAME}|{MANIFEST_NAME}|{SIGNATURE_NAME})\.[0-9a-f]+\.partial"
)
_COPY_AGAIN = "copy the folder again from where it came from, or export the package again."

Progress = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


@dataclass(frozen=True)
class ChangedFile:
    """A file whose bytes are not the sealed ones."""

    name: str
    expected: FileFacts
    found: FileFacts


@dataclass(frozen=True)
class VerifyReport:
    """What a full check of a package found; see `verify_package`.

    `irregular` pairs a name with what it is instead of a regular file that can be read.
    """

    folder: Path
    package_hash: str
    num_files: int
    num_bytes: int
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    irregular: tuple[tuple[str, str], ...] = ()
    changed: tuple[ChangedFile, ...] = ()

    @property
    def is_intact(self) -> bool:
        """True when the folder holds the sealed files and nothing else."""
        return not (self.missing or self.extra or self.irregular or self.changed)

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each file that is not as sealed, with both hashes where both exist."""
        return (
            *(f"{name!r} is missing" for name in self.missing),
            *(f"{name!r} {what}" for name, what in self.irregular),
            *(_describe_change(change) for change in self.changed),
            *(f"{name!r} is not listed in the manifest" for name in self.extra),
        )


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check `manifest.json` of a package folder.

    Raises:
        PackageError: No such folder, no package, or a manifest that does not fit; the text
            says which and names the key.
    """
    return Manifest.from_bytes(_read_manifest_bytes(Path(folder)))


def write_manifest(folder: Path | str, manifest: Manifest) -> Path:
    """Write `manifest.json` into a folder and force it to the disk; returns its path.

    The folder should be one that nobody reads yet: it becomes a package by this file.

    Raises:
        PackageError: The manifest would not be read back.
        OSError: The disk is full or the folder cannot be written.
    """
    path = Path(folder) / MANIFEST_NAME
    text = manifest.to_bytes()
    write_file(path, text)
    sync(path)
    return path


def package_hash(folder: Path | str) -> str:
    """Return the SHA-256 of the manifest's bytes, which by its hashes names all files.

    Raises:
        PackageError: The folder has no readable manifest.
    """
    return hashlib.sha256(_read_manifest_bytes(Path(folder))).hexdigest()


def hash_file(path: Path | str, progress: Progress | None = None) -> FileFacts:
    """Return size and SHA-256 of a file.

    Args:
        path: Any readable regular file.
        progress: Called after each 4 MiB at most; an exception from it ends the hashing.

    Raises:
        OSError: The file cannot be opened or read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    size_bytes = 0
    with Path(path).open("rb", buffering=0) as stream:
        while num_read := stream.readinto(buffer):
            digest.update(view[:num_read])
            size_bytes += num_read
            if progress is not None:
                progress(num_read)
    return FileFacts(size_bytes, digest.hexdigest())


def check_sizes(folder: Path | str, manifest: Manifest) -> None:
    """Check, without reading contents, that exactly the listed files exist at their sizes.

    Costs one look at the folder. Call it right before an engine maps the files: a mapped file
    that is shorter than the engine believes ends the process.

    Raises:
        PackageError: Files are missing, extra, irregular or of another size; all are named.
    """
    folder = Path(folder)
    report = _list_problems(folder, manifest)
    problems = list(report.problems)
    for name, facts in manifest.files.items():
        found = _size_bytes(inside(folder, name))
        if found is not None and found != facts.size_bytes:
            problems.append(_describe_size(name, facts.size_bytes, found))
    if problems:
        raise _broken(folder, problems)


def verify_package(folder: Path | str, progress: Progress | None = None) -> VerifyReport:
    """Hash every file of a package and compare with its manifest.

    Args:
        folder: The package folder.
        progress: Called with bytes hashed since the last call, for a progress bar.

    Raises:
        PackageError: There is no manifest to compare with. Differences are not raised, they
            are in the report; see `check_report`.
    """
    folder = Path(folder)
    text = _read_manifest_bytes(folder)
    manifest = Manifest.from_bytes(text)
    listed = _list_problems(folder, manifest)
    absent = {*listed.missing, *(name for name, _ in listed.irregular)}
    changed, irregular, num_bytes = [], list(listed.irregular), len(text)
    for name, facts in sorted(manifest.files.items()):
        if name in absent:
            continue
        try:
            found = hash_file(inside(folder, name), progress)
        except OSError as error:
            irregular.append((name, f"cannot be read ({error.strerror or error})"))
            continue
        num_bytes += found.size_bytes
        if found != facts:
            changed.append(ChangedFile(name, facts, found))
    return VerifyReport(
        folder=folder,
        package_hash=hashlib.sha256(text).hexdigest(),
        num_files=len(manifest.files) + 1,
        num_bytes=num_bytes,
        missing=listed.missing,
        extra=listed.extra,
        irregular=tuple(irregular),
        changed=tuple(changed),
    )


def check_report(report: VerifyReport) -> None:
    """Refuse a package that is not as it was sealed.

    Raises:
        PackageError: With every problem, and the report in `facts`.
    """
    if not report.is_intact:
        raise _broken(report.folder, list(report.problems), report)


def _list_problems(folder: Path, manifest: Manifest) -> VerifyReport:
    """Compare the folder's listing with the manifest; sizes and contents are not looked at."""
    try:
        on_disk = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise _not_readable(folder, error) from error
    extra = on_disk - manifest.files.keys() - {MANIFEST_NAME, SIGNATURE_NAME} - _LITTER
    irregular = []
    for name in sorted(on_disk & manifest.files.keys()):
        what = why_not_regular(inside(folder, name))
        if what is None and name in FORMAT_FILES["onnx"]:
            what = why_shared(inside(folder, name))
        if what:
            irregular.append((name, what))
    return VerifyReport(
        folder=folder,
        package_hash="",
        num_files=len(manifest.files) + 1,
        num_bytes=0,
        missing=tuple(sorted(manifest.files.keys() - on_disk)),
        extra=tuple(sorted(name for name in extra if not _HALF_WRITTEN.fullmatch(name))),
        irregular=tuple(irregular),
    )


def _read_manifest_bytes(folder: Path) -> bytes:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError as error:
        replaced = folder.with_name(f".{folder.name}{REPLACED_SUFFIX}")
        is_moved = folder.name and (replaced / MANIFEST_NAME).is_file()
        raise PackageError(
            f"There is no folder {str(folder)!r}."
            + (f" An interrupted export has moved it to {str(replaced)!r}." if is_moved else ""),
            "rename that back, or export the package again."
            if is_moved
            else "check the path, or make a package with `qwen-edge export --output DIR`.",
            path=str(folder),
        ) from error
    except OSError as error:
        raise _not_readable(folder, error) from error
    if MANIFEST_NAME not in names:
        raise _not_a_package(folder, names)
    path = folder / MANIFEST_NAME
    what = why_not_regular(path)
    size_bytes = _size_bytes(path) or 0
    if what or size_bytes > _MAX_MANIFEST_BYTES:
        what = what or f"has {format_bytes(size_bytes)}, more than any manifest"
        raise PackageError(f"{str(path)!r} {what}.", _COPY_AGAIN, path=str(path))
    try:
        return path.read_bytes()
    except OSError as error:
        raise _not_readable(path, error) from error


def _not_a_package(folder: Path, names: list[str]) -> PackageError:
    """Say what the folder seems to be instead, since that decides what to do."""
    fix = f"point to a folder made by `qwen-edge export`, or run\nqwen-edge export '{folder}'"
    if any(name.endswith(".safetensors") for name in names):
        what = "it holds a checkpoint, which must be exported first"
    elif "openvino_model.xml" in names:
        what = "it holds an OpenVINO model of another tool, without our manifest"
        fix = "export the original checkpoint with `qwen-edge export`."
    elif names:
        what = f"found {len(names):,} other files there, such as {names[0][:80]!r}"
        fix = "point to a folder made by `qwen-edge export`."
    else:
        what = "the folder is empty"
        fix = "point to a folder made by `qwen-edge export`."
    return PackageError(
        f"{str(folder)!r} is not a model package: {MANIFEST_NAME!r} is missing; {what}.",
        fix,
        path=str(folder),
        num_files=len(names),
    )


def _not_readable(path: Path, error: OSError) -> PackageError:
    if isinstance(error, NotADirectoryError):
        return PackageError(
            f"{str(path)!r} is a file; a model package is a folder.",
            "give the folder that holds 'manifest.json'.",
            path=str(path),
        )
    return PackageError(
        f"{str(path)!r} cannot be read: {error.strerror or error}.",
        "check the permissions of the folder and of its files.",
        path=str(path),
    )


def _broken(folder: Path, problems: list[str], report: VerifyReport | None = None) -> PackageError:
    fix = _COPY_AGAIN
    if report is None or report.extra:
        fix = f"{fix[:-1]}; move files that are not listed out of it."
    return PackageError(
        f"The package {str(folder)!r} is not as it was sealed: {join_problems(problems)}.",
        fix,
        path=str(folder),
        problems=tuple(problems),
        report=report,
    )


def _size_bytes(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _describe_change(change: ChangedFile) -> str:
    if change.expected.size_bytes != change.found.size_bytes:
        text = _describe_size(change.name, change.expected.size_bytes, change.found.size_bytes)
    else:
        text = f"{change.name!r} has other contents than were sealed"
    return f"{text} (SHA-256 {change.found.sha256}, expected {change.expected.sha256})"


def _describe_size(name: str, expected_bytes: int, found_bytes: int) -> str:
    verb = "is cut off at" if found_bytes < expected_bytes else "has"
    return f"{name!r} {verb} {found_bytes:,} bytes, expected {expected_bytes:,}"
