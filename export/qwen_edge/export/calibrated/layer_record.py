"""One compressed layer as a file, so that an interrupted calibration goes on where it was."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qwen_edge.export.compress import TensorReport, TensorStore
from qwen_edge.export.weight_store import Format
from qwen_edge.runtime.files.replacing import replace_content

_HEADER = "layer"


@dataclass(frozen=True)
class _Matrix:
    format: Format
    shape: tuple[int, int]
    group_size: int


class LayerRecord:
    """Takes a layer's tensors as the spool file does, and keeps them for a file.

    State:
        Filled by `add` and `add_vector`, or by `read_record`.
    """

    def __init__(self) -> None:
        self.vectors: dict[str, npt.NDArray[np.float32]] = {}
        self.reports: list[TensorReport] = []
        self._matrices: dict[str, _Matrix] = {}
        self._parts: dict[str, dict[str, npt.NDArray[Any]]] = {}

    def add(
        self,
        name: str,
        fmt: Format,
        shape: tuple[int, int],
        group_size: int,
        parts: Mapping[str, list[npt.NDArray[Any]]],
    ) -> None:
        """Keep one matrix; see `WeightStore.add`."""
        self._matrices[name] = _Matrix(fmt, shape, group_size)
        self._parts[name] = {key: np.concatenate(blocks) for key, blocks in parts.items()}

    def add_vector(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Keep a norm weight or bias, float32 [width]."""
        self.vectors[name] = values

    def replay(self, store: TensorStore) -> None:
        """Hand everything to a store, in the order in which it came."""
        for name, values in self.vectors.items():
            store.add_vector(name, values)
        for name, matrix in self._matrices.items():
            parts = {key: [array] for key, array in self._parts[name].items()}
            store.add(name, matrix.format, matrix.shape, matrix.group_size, parts)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: The disk is full.
        """
        arrays: dict[str, npt.NDArray[Any]] = dict(self.vectors)
        for name, parts in self._parts.items():
            arrays |= {f"{name}/{key}": array for key, array in parts.items()}
        header = {
            "vectors": list(self.vectors),
            "matrices": {name: asdict(matrix) for name, matrix in self._matrices.items()},
            "parts": {name: list(parts) for name, parts in self._parts.items()},
            "reports": [asdict(report) for report in self.reports],
        }
        content = save(arrays, metadata={_HEADER: json.dumps(header)})
        replace_content(path, content)


def read_record(path: Path) -> LayerRecord | None:
    """Return what `LayerRecord.write` wrote, or None where it cannot be read."""
    record = LayerRecord()
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()[_HEADER])
            record.vectors = {name: file.get_tensor(name) for name in header["vectors"]}
            for name, facts in header["matrices"].items():
                shape = (facts["shape"][0], facts["shape"][1])
                record._matrices[name] = _Matrix(facts["format"], shape, facts["group_size"])
                keys = header["parts"][name]
                record._parts[name] = {key: file.get_tensor(f"{name}/{key}") for key in keys}
            record.reports = [TensorReport(**report) for report in header["reports"]]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        return None
    except (AttributeError, RecursionError):  # JSON of another form, or without bottom
        return None
    return record
