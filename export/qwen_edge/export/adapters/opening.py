"""Adapter folders as given on the command line: found, weighed, their headers read.

Reads what is small: the configuration and the list of tensors. Whether they fit a model is for
`matching.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import CheckpointError, UsageError
from qwen_edge.export.adapters.settings import LoraSettings, read_settings
from qwen_edge.export.checkpoint import Checkpoint
from qwen_edge.export.package_facts import read_json_object
from qwen_edge.export.tensor_files import read_header

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLED_NAME = "adapter_model.bin"
_MAX_WEIGHT = 100.0


@dataclass(frozen=True)
class Adapter:
    """One LoRA, and how much of it is wanted.

    Args:
        name: The folder's own name, without its path.
        folder: Where its two files are.
        weight: What its change is multiplied by; 1 is all of it.
        settings: Its configuration.
        tensors: Its tensors, under the names they have in the file.
    """

    name: str
    folder: Path
    weight: float
    settings: LoraSettings
    tensors: Checkpoint

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the result depends on."""
        return self.folder / CONFIG_NAME, self.folder / WEIGHTS_NAME


def open_adapters(given: Sequence[str]) -> tuple[Adapter, ...]:
    """Open adapters in the order in which they were given.

    Args:
        given: Each a folder, or "FOLDER=WEIGHT". A folder whose name has an equals sign wins.

    Raises:
        UsageError: No such folder, an unusable weight, the same folder twice, or another method
            than LoRA.
        CheckpointError: A folder's files are missing or broken.
    """
    adapters: list[Adapter] = []
    for text in given:
        folder, weight = split_adapter(text)
        adapter = _open(folder, weight)
        if any(adapter.folder.resolve() == other.folder.resolve() for other in adapters):
            raise UsageError(
                f"The adapter {str(folder)!r} is given twice.",
                "give it once, with the sum of both weights: --adapter DIR=2",
                adapter=str(folder),
            )
        adapters.append(adapter)
    return tuple(adapters)


def split_adapter(text: str) -> tuple[Path, float]:
    """Return the folder and the weight that a text names.

    Args:
        text: A folder, or "FOLDER=WEIGHT".

    Raises:
        UsageError: No such folder, or an unusable weight.
    """
    whole = _find_folder(text)
    if whole is not None:
        return whole, 1.0
    name, _, number = text.rpartition("=")
    folder = _find_folder(name) if name else None
    if folder is None:
        raise UsageError(
            f"There is no adapter folder {name or text!r}.",
            "give a folder with adapter_config.json and adapter_model.safetensors; one from a hub "
            "is fetched with `hf download NAME --local-dir DIR`",
            adapter=text,
        )
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < abs(weight) <= _MAX_WEIGHT:  # NaN neither
        raise UsageError(
            f"The weight of the adapter {name!r} is {number!r}, expected a number other than 0 "
            f"from -{_MAX_WEIGHT:g} to {_MAX_WEIGHT:g}.",
            "write --adapter DIR for all of it, or --adapter DIR=0.5 for half",
            adapter=name,
            weight=number,
        )
    return folder, weight


def _find_folder(text: str) -> Path | None:
    try:
        folder = Path(text).expanduser()
        return folder if text and folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a text that no system could have as a path
        return None


def _open(folder: Path, weight: float) -> Adapter:
    name = folder.resolve().name
    if not (folder / CONFIG_NAME).is_file():
        is_model = (folder / "config.json").is_file()
        raise CheckpointError(
            f"{str(folder)!r} holds no {CONFIG_NAME!r}"
            + (", but a config.json: it is a model, not an adapter." if is_model else "."),
            f"export it directly: qwen-edge export {folder}"
            if is_model
            else "give the folder that peft's `save_pretrained` wrote",
            folder=str(folder),
        )
    settings = read_settings(read_json_object(folder / CONFIG_NAME), name)
    weights = folder / WEIGHTS_NAME
    if not weights.exists():
        is_pickled = (folder / _PICKLED_NAME).exists()
        raise CheckpointError(
            f"{str(folder)!r} holds no {WEIGHTS_NAME!r}"
            + (f", only {_PICKLED_NAME!r}, which could run any code." if is_pickled else "."),
            "save the adapter with peft's `save_pretrained(…, safe_serialization=True)`",
            folder=str(folder),
        )
    tensors = Checkpoint(folder, {entry.name: entry for entry in read_header(weights)})
    return Adapter(name, folder, weight, settings, tensors)
