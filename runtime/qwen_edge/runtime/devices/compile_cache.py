"""The folder in which a device keeps what its compiler made of a package, and proof that it is so.

Compiling for an NPU takes a minute or more. OpenVINO writes the result to the folder named by
CACHE_DIR, without the weights: those it reads from the package again. It takes damaged files for
good ones and looks at fewer properties than there are, so each package, device, driver, engine
and set of properties has a folder of its own, whose files are listed there with their hashes. A
folder that cannot be used costs time, never correctness.

Source:
    Measured, OpenVINO 2026.4.1: a file with 64 changed bytes was loaded and gave other results;
    EXECUTION_MODE_HINT did not count. openvinotoolkit/openvino@007c23c, npuw/
    llm_compiled_model.cpp, export_model: without weights unless CACHE_MODE is OPTIMIZE_SPEED.
"""

import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from qwen_edge.runtime.package import hash_file
from qwen_edge.runtime.schema import SchemaError, parse_json

_LOGGER = logging.getLogger(__name__)
_KIND = "compiled"
_LIST_NAME = "files.json"
_MAX_LIST_BYTES = 1 << 20
_MAX_FOLDERS = 3  # of one package on one device: drivers and settings change, disks are small
CACHED_DEVICES = ("NPU",)
"""Devices whose compiler is slow and whose cache is small. A GPU would write all weights again."""


def prepare_cache_folder(
    cache_dir: Path | None, package_hash: str, device: str, facts: Mapping[str, str]
) -> Path | None:
    """Return the folder for CACHE_DIR, with nothing in it but what was found good once.

    Args:
        cache_dir: Where files go that may be deleted; None for none.
        package_hash: Of the package.
        device: As in the package's settings.
        facts: All that the result depends on besides: driver, engine, properties.

    Returns:
        An existing folder, or None where there is none to be had or the device has no use for it.

    State:
        Makes the folder, deletes files in it that are not as listed, and deletes the oldest
        folders of other facts.
    """
    if cache_dir is None or device not in CACHED_DEVICES:
        return None
    text = json.dumps(dict(facts), sort_keys=True)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    folder = cache_dir / _KIND / f"{package_hash[:32]}-{device}" / digest[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # the newest of its kind is kept
        _delete_unlisted(folder)
        _delete_oldest(folder)
    except OSError as error:
        _LOGGER.warning("What is compiled for %s cannot be kept: %s", device, error)
        return None
    return folder


def seal_cache_folder(folder: Path | None) -> None:
    """List the files that a good compilation left in its folder; a failure is logged.

    Args:
        folder: What `prepare_cache_folder` returned, after the model was compiled and tried.
    """
    if folder is None:
        return
    partial = folder / f"{_LIST_NAME}.{os.getpid()}.partial"
    try:
        listed = {path.name: hash_file(path).sha256 for path in _blobs(folder)}
        if listed == _read_list(folder):
            return
        partial.write_bytes(json.dumps(listed, sort_keys=True).encode("ascii", "backslashreplace"))
        partial.replace(folder / _LIST_NAME)
    except OSError as error:
        _LOGGER.warning("What was compiled cannot be kept in %s: %s", folder, error)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _delete_unlisted(folder: Path) -> None:
    listed = _read_list(folder)
    for path in _blobs(folder):
        if listed.get(path.name) != hash_file(path).sha256:
            _LOGGER.warning("%s is not what was compiled; it is made again", path)
            _delete(path)


def _delete_oldest(folder: Path) -> None:
    others = [path for path in folder.parent.iterdir() if path != folder and path.is_dir()]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[_MAX_FOLDERS - 1 :]:
        for file in path.iterdir():
            _delete(file)
        path.rmdir()


def _delete(path: Path) -> None:
    path.chmod(stat.S_IWRITE | stat.S_IREAD)  # the engine marks its files as read-only
    path.unlink()


def _blobs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix == ".blob")


def _read_list(folder: Path) -> dict[str, str]:
    path = folder / _LIST_NAME
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            return {}
        found = parse_json(path.read_bytes())
    except (OSError, SchemaError):
        return {}
    return found if isinstance(found, dict) else {}
