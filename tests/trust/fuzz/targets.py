"""All targets, and the inputs that were found to break one: they are tried again at every run."""

import hashlib
import lzma
from pathlib import Path

import checkpoints
import kept
import packages
import texts
from lab import Target

FOUND = Path(__file__).parent / "found"
TARGETS = (*checkpoints.TARGETS, *packages.TARGETS, *kept.TARGETS, *texts.TARGETS)


def find(name: str) -> Target:
    """Return a target by its name."""
    return next(target for target in TARGETS if target.name == name)


def found(name: str) -> list[Path]:
    """Return the files of a target's found inputs."""
    return sorted((FOUND / name).glob("*.xz"))


def keep(name: str, data: bytes) -> Path:
    """Write an input that broke a target into its folder."""
    path = FOUND / name / f"{hashlib.sha256(data).hexdigest()[:16]}.xz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(data, preset=9))
    return path


def unpack(path: Path) -> bytes:
    """Return the input in such a file."""
    return lzma.decompress(path.read_bytes())
