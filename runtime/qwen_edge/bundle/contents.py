"""What a bundle consists of: parts, each with a version, a licence and files.

`sbom.py`, `licences.py` and the table of sizes all read the same list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PartKind = Literal["program", "distribution", "engine", "interpreter", "library", "model"]
UNKNOWN_LICENCE = "unknown"
MODEL_FOLDER = "model"
"""Folder of the package in a bundle."""


@dataclass(frozen=True)
class LicenceText:
    """A text that goes into the folder `licences`.

    Args:
        name: File name there, below the part's own folder.
        content: Its bytes, as whoever wrote them published them.
    """

    name: str
    content: bytes


@dataclass(frozen=True)
class Part:
    """One thing of somebody's in a bundle.

    Args:
        name: As its makers call it.
        kind: What sort of thing it is.
        version: None where nobody says.
        licence: An SPDX expression or what its makers say; "unknown" where they say nothing.
        digests: File → SHA-256. Files in a zip are written "lib/packages.zip!/click/core.pyc".
        texts: Its licence and notices.
        purl: Package URL, or None.
        about: One sentence where something has to be said, or None.
    """

    name: str
    kind: PartKind
    version: str | None
    licence: str
    digests: Mapping[str, str]
    texts: tuple[LicenceText, ...] = ()
    purl: str | None = None
    about: str | None = None


def size_of_files(paths: Iterable[Path]) -> int:
    """Return the bytes of all regular files among the paths."""
    return sum(path.stat().st_size for path in paths if path.is_file())
