"""What the targets share: the description of one, and a folder of good files to damage."""

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutate import Change

import qwen_edge.export

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
Reader = Callable[[bytes], None]


class BrokenLawError(AssertionError):
    """A reader answered, but not with what holds for every input."""


@dataclass(frozen=True)
class Lab:
    """Where a worker reads and writes.

    Args:
        work: A folder of the worker's own.
        package: A package of the demo model, as exported; read only.
    """

    work: Path
    package: Path

    def copy_package(self) -> Path:
        """Return a folder with the package's files: links, so that what is written is replaced."""
        folder = self.work / "package"
        if not folder.exists():
            shutil.copytree(self.package, folder)
        return folder

    def write(self, name: str, data: bytes) -> Path:
        """Write one input to a file and return its path."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


@dataclass(frozen=True)
class Target:
    """One reader under test.

    Args:
        name: Of the target, and of its folder of found inputs.
        rows: Of the catalogue that it tries, besides T-IN-17.
        seeds: Returns good inputs.
        changes: How inputs are made of them; one is drawn for each case.
        prepare: Returns the reader, which is called once for each input. It may raise EdgeError
            and nothing else.
        cases: How many the default suite tries.
    """

    name: str
    seeds: Callable[[Lab], Sequence[bytes]]
    changes: tuple[Change, ...]
    prepare: Callable[[Lab], Reader]
    cases: int = 400
    rows: tuple[str, ...] = ()


def demo_file(name: str) -> Callable[[Lab], Sequence[bytes]]:
    """Return a maker of seeds: one file of the demo checkpoint."""
    return lambda lab: [(DEMO / name).read_bytes()]


def package_file(name: str) -> Callable[[Lab], Sequence[bytes]]:
    """Return a maker of seeds: one file of the package."""
    return lambda lab: [(lab.package / name).read_bytes()]


def make_safetensors(shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> bytes:
    """Return a small file of zeros; two bytes a number where the type is not F32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = 4 if dtype == "F32" else 2
        for length in shape:
            size *= length
        offsets = [offset, offset + size]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)
