"""Remember that a package was fully hashed, so that the next load need not do it again.

One small file per package path in the user's cache folder, holding the package hash with size
and modification time of every file. The record holds only while all of these are the same. A
cache folder that cannot be used costs time, never correctness. This module knows no engine;
read `package.py` for the check that is remembered here.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from qwen_edge.errors import PackageError
from qwen_edge.runtime.manifest import MANIFEST_NAME, Manifest
from qwen_edge.runtime.package import Progress, check_report, package_hash, verify_package
from qwen_edge.runtime.schema import SchemaError, parse_json

_LOGGER = logging.getLogger(__name__)
_MAX_RECORD_BYTES = 1 << 20
_YOUNG_FILE_S = 2.0  # FAT keeps modification times in steps of 2 s, the coarsest in use

Stamps = Mapping[str, tuple[int, int, int, int]]
"""Name to (size in bytes, modification time in ns, file number, change or creation time in ns)."""


def check_verified(
    folder: Path | str,
    manifest: Manifest,
    *,
    cache_dir: Path | None,
    progress: Progress | None = None,
) -> bool:
    """Hash the package unless a record says that these very files were hashed before.

    Args:
        folder: The package folder.
        manifest: What `read_manifest` returned for it.
        cache_dir: Where records are kept; None to hash every time.
        progress: As for `verify_package`.

    Returns:
        True when the files were hashed now, False when the record was enough.

    Raises:
        PackageError: The package is not as it was sealed.

    State:
        Writes or replaces one record under `cache_dir` after a full check that passed.
    """
    folder = Path(folder)
    sealed = package_hash(folder)
    stamps = _read_stamps(folder, manifest)
    if cache_dir is not None and _is_recorded(folder, sealed, stamps, cache_dir):
        return False
    started_s = time.monotonic()
    report = verify_package(folder, progress)
    check_report(report)
    taken_s = time.monotonic() - started_s
    _LOGGER.info("Checked %d files of %s in %.1f s", report.num_files, folder, taken_s)
    if cache_dir is not None and _read_stamps(folder, manifest) == stamps:
        _record(folder, sealed, stamps, cache_dir)
    return True


def _read_stamps(folder: Path, manifest: Manifest) -> Stamps:
    stamps = {}
    for name in (*manifest.files, MANIFEST_NAME):
        try:
            facts = (folder / name).lstat()
        except OSError as error:
            raise PackageError(
                f"The package {str(folder)!r} is not as it was sealed: {name!r} "
                f"{'is missing' if isinstance(error, FileNotFoundError) else error.strerror}.",
                "copy the folder again from where it came from, or export the package again.",
                path=str(folder),
            ) from error
        # A copy keeps size and time of the last change, but is another file (st_ino) and was
        # made at another time (st_ctime_ns: the change of the entry, on Windows its creation).
        stamps[name] = (facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns)
    return stamps


def _record_path(folder: Path, cache_dir: Path) -> Path:
    digest = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_dir / "verified" / f"{digest[:32]}.json"


def _record_text(folder: Path, sealed: str, stamps: Stamps) -> bytes:
    record = {
        "package_hash": sealed,
        "path": str(folder.resolve()).encode("utf-8", "backslashreplace").decode("utf-8"),
        "stamps": {name: list(stamp) for name, stamp in stamps.items()},
    }
    return json.dumps(record, sort_keys=True, indent=1).encode("utf-8")


def _is_recorded(folder: Path, sealed: str, stamps: Stamps, cache_dir: Path) -> bool:
    path = _record_path(folder, cache_dir)
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            return False
        found = parse_json(path.read_bytes())
    except (OSError, SchemaError):
        return False
    return bool(found == json.loads(_record_text(folder, sealed, stamps)))


def _record(folder: Path, sealed: str, stamps: Stamps, cache_dir: Path) -> None:
    """Write the record; a failure is logged and otherwise ignored."""
    youngest_ns = max(mtime_ns for _, mtime_ns, _, _ in stamps.values())
    if time.time_ns() - youngest_ns < _YOUNG_FILE_S * 1e9:
        # A change within the clock's step would not show in the time: hash once more instead.
        _LOGGER.debug("The files of %s are too young to be remembered as checked", folder)
        return
    path = _record_path(folder, cache_dir)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(_record_text(folder, sealed, stamps))
        partial.replace(path)
    except OSError as error:
        _LOGGER.warning("The check of %s cannot be remembered: %s", folder, error)
        try:
            partial.unlink(missing_ok=True)
        except OSError:
            _LOGGER.debug("%s stays behind", partial)
