"""What a calibrated export needs besides the checkpoint: texts, and a place for unfinished work."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.export.adapters.opening import Adapter
from qwen_edge.export.calibration_texts import CalibrationText
from qwen_edge.export.source import FetchedSource
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.files.writing import remove, remove_file

_SUFFIX = ".calibration"
KEY_NAME = "key"
"""The file in a work folder that says what it belongs to."""
# What computes: another version may round otherwise, and then it is another package.
_TOOLS = ("qwen-edge", "openvino", "numpy")


@dataclass(frozen=True)
class Calibration:
    """The texts, and where to keep what is done.

    Args:
        recipe: One whose `calibration` is "activations", with a format for every matrix.
        text: As tokens.
        folder: Kept over interruptions, see `work_folder_path`.
        key: Everything that the result depends on, as text: with another one, earlier work is
            not gone on with.
    """

    recipe: Recipe
    text: CalibrationText
    folder: Path
    key: str


def describe_inputs(
    source: FetchedSource, adapters: Sequence[Adapter], text: CalibrationText
) -> dict[str, Any]:
    """Return all that calibration depends on but the recipe, as plain values.

    Args:
        source: The checkpoint.
        adapters: What is merged into it.
        text: As tokens.
    """
    samples = json.dumps(text.samples).encode("ascii")
    return {
        "source": {name: _describe(source.folder / name) for name in sorted(source.files)},
        "adapters": [
            [adapter.weight, *(_describe(path) for path in adapter.files)] for adapter in adapters
        ],
        "samples": hashlib.sha256(samples).hexdigest(),
        "tools": {name: importlib.metadata.version(name) for name in _TOOLS},
        "threads": os.cpu_count(),
    }


def open_calibration(
    recipe: Recipe, text: CalibrationText, target: Path, inputs: Mapping[str, Any]
) -> Calibration:
    """Return a calibration that goes on where an equal one was interrupted.

    Args:
        recipe: The recipe.
        text: As tokens.
        target: The package folder to be.
        inputs: See `describe_inputs`.
    """
    key = json.dumps({**inputs, "recipe": recipe.to_manifest()}, indent=1, sort_keys=True)
    return Calibration(recipe, text, work_folder_path(target), key)


def work_folder_path(target: Path) -> Path:
    """Return where the calibration of a package is kept: beside it, hidden."""
    return target.with_name(f".{target.name}{_SUFFIX}")


def remove_work_folder(path: Path) -> None:
    """Remove a calibration that is done or not wanted; the key first, so that it is never half."""
    with contextlib.suppress(OSError):
        remove_file(path / KEY_NAME)
    remove(path)


def search_path(target: Path) -> Path:
    """Return where what a recipe search measured is kept: beside the package, hidden."""
    return target.with_name(f".{target.name}.search.json")


def count_kept_bytes(target: Path) -> int:
    """Return the size of what calibration keeps beside a target; 0 where nothing is kept."""
    try:
        num_bytes = sum(path.stat().st_size for path in work_folder_path(target).iterdir())
    except OSError:
        num_bytes = 0  # there is none, or it is going just now
    with contextlib.suppress(OSError):
        num_bytes += search_path(target).stat().st_size
    return num_bytes


def discard_work(target: Path) -> None:
    """Remove what calibration kept beside a target, now that it is published."""
    remove_work_folder(work_folder_path(target))
    with contextlib.suppress(OSError):
        remove_file(search_path(target))


def _describe(path: Path) -> list[int]:
    """Return what changes when a file of the checkpoint does; hashing 8 GB would take a minute."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]
