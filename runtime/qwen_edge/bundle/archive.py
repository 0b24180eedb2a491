"""Zip files that are the same bytes for the same content: sorted, without times."""

import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from qwen_edge.runtime.files.writing import open_for_writing

_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
_UNIX = 3
_CHUNK_BYTES = 4 << 20
# Quantised weights do not become smaller, and there are gigabytes of them.
_STORED = frozenset({".bin", ".data", ".zip"})
_STORED_FROM_BYTES = 1 << 20

Progress = Callable[[int], None]


def write_module_zip(path: Path, modules: Mapping[str, bytes]) -> None:
    """Write a zip that Python imports from.

    Args:
        path: The file to be.
        modules: Name in the zip → content.
    """
    with (
        open_for_writing(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for name, content in sorted(modules.items()):
            archive.writestr(_entry(name, 0o644), content)


def write_folder_zip(folder: Path, file: BinaryIO, progress: Progress | None = None) -> None:
    """Write a folder and all in it as a zip, under the folder's own name.

    Args:
        folder: What goes in.
        file: Open for writing, empty.
        progress: Called with bytes read since the last call.
    """
    files = sorted(
        (Path(top) / name for top, _, names in os.walk(folder) for name in names),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in files:
            facts = path.stat()
            is_program = facts.st_mode & stat.S_IXUSR
            entry = _entry(
                f"{folder.name}/{path.relative_to(folder).as_posix()}",
                0o755 if is_program else 0o644,
            )
            entry.file_size = facts.st_size  # so that more than 4 GiB are foreseen
            if path.suffix in _STORED and facts.st_size >= _STORED_FROM_BYTES:
                entry.compress_type = zipfile.ZIP_STORED
            with path.open("rb") as source, archive.open(entry, "w") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
                    if progress is not None:
                        progress(len(chunk))


def _entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = _UNIX
    entry.external_attr = (stat.S_IFREG | mode) << 16
    return entry
