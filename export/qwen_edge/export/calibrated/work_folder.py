"""What a calibration keeps beside its target: finished layers, and what the next one reads.

Killed at any point, a calibration goes on with the layer that was not finished, and comes to the
same package.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from qwen_edge.errors import OutputFolderError
from qwen_edge.export.calibrated.calibration import (
    KEY_NAME,
    Calibration,
    remove_work_folder,
)
from qwen_edge.export.calibrated.layer_record import LayerRecord, read_record
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.quality.layerwise import Hidden
from qwen_edge.runtime.files.writing import (
    make_folder,
    open_for_writing,
    remove_file,
    rename,
    sync,
    write_text,
)

_OWN_NAME = re.compile(r"(hidden|layer)-[0-9]+\.(bin|part|safetensors)")


class WorkFolder:
    """The folder of one calibration.

    Args:
        path: See `calibration.work_folder_path`.
        key: Everything that the result depends on, as text. A folder with another is emptied.
        lengths: Tokens of each sample.
        width: Channels of a hidden state.

    Raises:
        OutputFolderError: Something that is not ours is at its place.
        OSError: The folder cannot be made or emptied.

    State:
        `other_key` is the key of what lay there and was removed; None where nothing did.
        The hidden states that layer i reads are in one file, removed when layer i + 1's are
        complete and layer i's record is.
    """

    def __init__(self, path: Path, key: str, lengths: Sequence[int], width: int) -> None:
        self.path = path
        self._lengths = tuple(lengths)
        self._width = width
        self.other_key: str | None = None
        found = _read_key(path)
        if found != key:
            _check_ours(path)
            self.other_key = found
            remove_work_folder(path)
            make_folder(path)
            write_text(path / KEY_NAME, key)

    def find_next_layer(self, num_layers: int) -> int | None:
        """Return the layer to go on with, `num_layers` where all are done; None for the embedding.

        Args:
            num_layers: Of the model.
        """
        if all(self._layer_path(i).is_file() for i in range(num_layers)):
            return num_layers
        size = 4 * sum(self._lengths) * self._width
        found = {
            path.stem for path in self.path.glob("hidden-*.bin") if path.stat().st_size == size
        }
        for index in reversed(range(num_layers)):
            if f"hidden-{index}" in found and all(
                self._layer_path(before).is_file() for before in range(index)
            ):
                return index
        return None

    def read_hidden(self, layer_index: int) -> Iterator[Hidden]:
        """Yield what a layer reads of each sample, float32 [tokens, width], as copies."""
        shape = (sum(self._lengths), self._width)
        mapped = np.memmap(self._hidden_path(layer_index), np.float32, "r", shape=shape)
        start = 0
        for length in self._lengths:
            yield np.array(mapped[start : start + length])
            start += length

    def write_hidden(self, layer_index: int, hidden: Iterable[Hidden]) -> Iterator[int]:
        """Write what a layer reads, and yield the number of samples written after each.

        Raises:
            OSError: The disk is full.
        """
        path = self._hidden_path(layer_index)
        unfinished = path.with_suffix(".part")
        with open_for_writing(unfinished) as file:
            for count, rows in enumerate(hidden, 1):
                file.write(rows.data.cast("B"))
                yield count
        sync(unfinished)
        rename(unfinished, path)

    def write_layer(self, layer_index: int, record: LayerRecord) -> None:
        """Keep a finished layer.

        Raises:
            OSError: The disk is full.
        """
        record.write(self._layer_path(layer_index))

    def read_layer(self, layer_index: int) -> LayerRecord | None:
        """Return a finished layer; None where its file cannot be read."""
        return read_record(self._layer_path(layer_index))

    def drop_hidden(self, layer_index: int) -> None:
        """Remove what a layer read, where the system lets us: mapped files stay on Windows."""
        with contextlib.suppress(OSError):
            remove_file(self._hidden_path(layer_index))

    def _hidden_path(self, layer_index: int) -> Path:
        return self.path / f"hidden-{layer_index}.bin"

    def _layer_path(self, layer_index: int) -> Path:
        return self.path / f"layer-{layer_index}.safetensors"


def open_work_folder(spec: DecoderSpec, calibration: Calibration) -> WorkFolder:
    """Open the folder of a calibration; see `WorkFolder`.

    Args:
        spec: The decoder.
        calibration: Its texts, key and folder.
    """
    lengths = [len(sample) for sample in calibration.text.samples]
    return WorkFolder(calibration.folder, calibration.key, lengths, spec.hidden_size)


def _check_ours(path: Path) -> None:
    """Refuse to empty what was not made here."""
    if not os.path.lexists(path):
        return
    is_ours = path.is_dir() and not path.is_symlink()
    if is_ours:
        is_ours = all(
            entry.name == KEY_NAME or _OWN_NAME.fullmatch(entry.name) for entry in path.iterdir()
        )
    if not is_ours:
        raise OutputFolderError(
            f"{str(path)!r}, where calibration keeps its work, holds something else.",
            "move it away, or choose another place with --output DIR",
            folder=str(path),
        )


def _read_key(path: Path) -> str | None:
    try:
        return (path / KEY_NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
