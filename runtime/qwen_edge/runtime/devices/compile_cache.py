"""The folder in which a device keeps what its compiler made of a package, and proof that it is so.

Compiling for an NPU takes a minute or more. OpenVINO writes the result to the folder named by
CACHE_DIR, without the weights: those it reads from the package again. It takes damaged files for
good ones and looks at fewer properties than there are, so each package, device, driver, engine
and set of properties has a folder of its own, whose files are listed there with their hashes. It
also writes over files that another process has mapped, which ends that process, so whoever
compiles does so in a folder of his own, which is given its name when it is complete. A folder
that cannot be used costs time, never correctness.

Source:
    Measured, OpenVINO 2026.4.1: a file with 64 changed bytes was loaded and gave other results;
    EXECUTION_MODE_HINT did not count. openvinotoolkit/openvino@007c23c, npuw/
    llm_compiled_model.cpp, export_model: without weights unless CACHE_MODE is OPTIMIZE_SPEED.
"""

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from qwen_edge.runtime.files.replacing import replace_content
from qwen_edge.runtime.files.writing import make_folder, remove, rename
from qwen_edge.runtime.package import hash_file
from qwen_edge.runtime.schema import SchemaError, parse_json

_LOGGER = logging.getLogger(__name__)
_KIND = "compiled"
_LIST_NAME = "files.json"
_MAX_LIST_BYTES = 1 << 20
_MAX_FOLDERS = 3  # of one package on one device: drivers and settings change, disks are small
_MAX_PACKAGES = 16
_PRIVATE_SUFFIX = ".partial"
_ABANDONED_S = 86_400.0  # longer than any compilation: who began it was killed
CACHED_DEVICES = ("NPU",)
"""Devices whose compiler is slow and whose cache is small. A GPU would write all weights again."""


def prepare_cache_folder(
    cache_dir: Path | None, package_hash: str, device: str, facts: Mapping[str, str]
) -> Path | None:
    """Return a folder for CACHE_DIR: what was found good once, or an empty one to compile into.

    Args:
        cache_dir: Where files go that may be deleted; None for none.
        package_hash: Of the package.
        device: As in the package's settings.
        facts: All that the result depends on besides: driver, engine, properties.

    Returns:
        An existing folder, or None where there is none to be had or the device has no use for it.
        Hand it to `seal_cache_folder` or `discard_cache_folder` afterwards.

    State:
        May make a folder, and deletes those of other facts and packages that were used longest ago.
    """
    if cache_dir is None or device not in CACHED_DEVICES:
        return None
    text = json.dumps(dict(facts), sort_keys=True)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    folder = cache_dir / _KIND / f"{package_hash[:32]}-{device}" / digest[:32]
    try:
        make_folder(folder.parent)
        if not _is_as_sealed(folder):
            folder = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{_PRIVATE_SUFFIX}")
            make_folder(folder)
        for path in (folder, folder.parent):
            os.utime(path)  # the newest of its kind is kept
        _delete_oldest(folder, _MAX_FOLDERS)
        _delete_oldest(folder.parent, _MAX_PACKAGES)
    except OSError as error:
        _LOGGER.warning("What is compiled for %s cannot be kept: %s", device, error)
        return None
    return folder


def seal_cache_folder(folder: Path | None) -> None:
    """Keep the files that a good compilation left in its folder; a failure is logged.

    Args:
        folder: What `prepare_cache_folder` returned, after the model was compiled and tried.

    State:
        A folder that was made for this compilation gets its name, in the place of what was there.
    """
    if folder is None or not _is_private(folder):
        return
    target = folder.with_name(folder.name[1:].partition(".")[0])
    try:
        listed = {path.name: hash_file(path).sha256 for path in _blobs(folder)}
        text = json.dumps(listed, sort_keys=True).encode("ascii")
        replace_content(folder / _LIST_NAME, text, durable=False)
        if _is_as_sealed(target):  # another process was faster
            remove(folder)
            return
        if target.exists():
            rename(target, folder.with_name(f".{secrets.token_hex(8)}{_PRIVATE_SUFFIX}"))
        rename(folder, target)
    except OSError as error:
        _LOGGER.warning("What was compiled cannot be kept in %s: %s", target, error)
        remove(folder)


def discard_cache_folder(folder: Path | None) -> None:
    """Remove what a compilation left that did not go well; what was found good earlier stays."""
    if folder is not None and _is_private(folder):
        remove(folder)


def _is_private(folder: Path) -> bool:
    return folder.name.startswith(".") and folder.name.endswith(_PRIVATE_SUFFIX)


def _is_as_sealed(folder: Path) -> bool:
    """Return whether a folder holds what was listed in it, and nothing else to be loaded."""
    if not folder.is_dir():
        return False
    listed = _read_list(folder)
    found = {path.name: hash_file(path).sha256 for path in _blobs(folder)}
    if found and found == listed:
        return True
    _LOGGER.warning("%s is not what was compiled; it is made again", folder)
    return False


def _delete_oldest(folder: Path, most: int) -> None:
    """Leave so many folders beside each other, this one among them."""
    others = []
    for path in folder.parent.iterdir():
        if path == folder or not path.is_dir():
            continue
        used_s = path.stat().st_mtime
        if not _is_private(path):
            others.append((used_s, path))
        elif time.time() - used_s > _ABANDONED_S:
            remove(path)
    for _, path in sorted(others, reverse=True)[most - 1 :]:
        remove(path)


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
