"""Small records in the user's cache folder: what was found out about files that did not change.

A record holds only while every file it names has the size, times and number it had; what was
found may be more than that all is well. A cache folder that cannot be used costs time, never
correctness. This module knows no package and no engine; `verified.py`, `backends/compiling.py`,
`devices/onnx_opening.py` and `devices/compile_trial.py` say what is worth a record.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import PackageError
from qwen_edge.runtime.files.opening import inside
from qwen_edge.runtime.files.replacing import replace_content
from qwen_edge.runtime.files.writing import make_folder
from qwen_edge.runtime.schema import SchemaError, parse_json

_LOGGER = logging.getLogger(__name__)
_MAX_RECORD_BYTES = 1 << 20
_YOUNG_FILE_S = 2.0  # FAT keeps modification times in steps of 2 s, the coarsest in use
_FINDING = "finding"  # a key that no facts use

Stamps = Mapping[str, tuple[int, int, int, int]]
"""Name to (size in bytes, modification time in ns, file number, change or creation time in ns)."""


@dataclass(frozen=True)
class Record:
    """Something found out about the files of one folder.

    Args:
        kind: What was found out; names a folder in the cache.
        folder: The folder the files are in.
        facts: What it depends on besides the files.
        stamps: The files.
        key: Tells records of one kind and folder apart.
    """

    kind: str
    folder: Path
    facts: Mapping[str, str]
    stamps: Stamps
    key: str = ""

    def path(self, cache_dir: Path) -> Path:
        """Return where it is kept."""
        name = f"{self.folder.resolve()}\0{self.key}" if self.key else str(self.folder.resolve())
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        return cache_dir / self.kind / f"{digest[:32]}.json"

    def text(self, finding: Mapping[str, str] | None = None) -> bytes:
        """Return the bytes of its file."""
        path = str(self.folder.resolve()).encode("utf-8", "backslashreplace").decode("utf-8")
        stamps = {name: list(stamp) for name, stamp in self.stamps.items()}
        content: dict[str, object] = {**self.facts, "path": path, "stamps": stamps}
        if finding:
            content[_FINDING] = dict(finding)
        return json.dumps(content, sort_keys=True, indent=1).encode("utf-8")


def read_stamps(folder: Path, names: Iterable[str]) -> Stamps:
    """Return what tells these files from others of the same names.

    Raises:
        PackageError: One of them is missing or cannot be looked at.
    """
    stamps = {}
    for name in names:
        try:
            facts = inside(folder, name).lstat()
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


def is_recorded(record: Record, cache_dir: Path | None) -> bool:
    """Return whether the very same record was written before, with any finding."""
    return read_finding(record, cache_dir) is not None


def read_finding(record: Record, cache_dir: Path | None) -> Mapping[str, str] | None:
    """Return what the very same record was written with; None where it was not written."""
    if cache_dir is None:
        return None
    path = record.path(cache_dir)
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            return None
        found = parse_json(path.read_bytes())
    except (OSError, SchemaError):
        return None
    finding = found.pop(_FINDING, {}) if isinstance(found, dict) else None
    is_same = bool(found == json.loads(record.text()))
    if not is_same or not isinstance(finding, dict):
        return None
    return {str(key): str(value) for key, value in finding.items()}


def write_record(
    record: Record, cache_dir: Path | None, finding: Mapping[str, str] | None = None
) -> None:
    """Write a record in the place of an earlier one; a failure is logged and otherwise ignored.

    Args:
        record: What the finding holds for.
        cache_dir: Where records are kept; None to write none.
        finding: What `read_finding` is to return; None for nothing but that it was found.
    """
    if cache_dir is None:
        return
    youngest_ns = max(mtime_ns for _, mtime_ns, _, _ in record.stamps.values())
    if time.time_ns() - youngest_ns < _YOUNG_FILE_S * 1e9:
        # A change within the clock's step would not show in the time: look once more instead.
        _LOGGER.debug("The files of %s are too young for a record", record.folder)
        return
    path = record.path(cache_dir)
    try:
        make_folder(path.parent)
        replace_content(path, record.text(finding), durable=False)
    except OSError as error:
        _LOGGER.warning("The check of %s cannot be remembered: %s", record.folder, error)
