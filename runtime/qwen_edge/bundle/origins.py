"""Whether a bundle is made of what was tested: pinned versions, files as they were installed.

`requirements.txt` beside this file has the exact versions with the hashes of their wheels; pip
compares those when it installs. Afterwards only the list that each wheel came with (RECORD) is
left to compare with. Whoever changes a file and its list is not found out here.
"""

import base64
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.bundle.distributions import PROJECT, Distribution, normalise
from qwen_edge.runtime.package import Progress

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)")
_MOST_NAMED = 5


@dataclass(frozen=True)
class Origins:
    """Where the packages of a bundle are from.

    Args:
        requirements_hash: SHA-256 of the pinned requirements.
        other_versions: Sentences: which package is not as pinned.
        altered_files: Files that are not as they were installed, below the folder of packages.
    """

    requirements_hash: str
    other_versions: tuple[str, ...]
    altered_files: tuple[str, ...]

    @property
    def notices(self) -> tuple[str, ...]:
        """What whoever makes the bundle should know; sentences."""
        texts = []
        if self.other_versions:
            texts.append(f"Not the versions that were tested: {_list(self.other_versions)}.")
        if self.altered_files:
            texts.append(f"Changed after they were installed: {_list(self.altered_files)}.")
        return tuple(texts)

    @property
    def properties(self) -> dict[str, str]:
        """The same for the bill of materials."""
        return {
            "requirements-sha256": self.requirements_hash,
            "other-versions": "; ".join(self.other_versions) or "none",
            "altered-files": "; ".join(self.altered_files) or "none",
        }

    @property
    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "sha256": self.requirements_hash,
            "other_versions": list(self.other_versions),
            "altered_files": list(self.altered_files),
        }


def read_pins(path: Path = REQUIREMENTS) -> dict[str, str]:
    """Return the pinned versions: name → version.

    Args:
        path: Instead of the project's own.
    """
    found = (_PIN.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {normalise(pin["name"]): pin["version"] for pin in found if pin}


def find_origins(
    distributions: Iterable[Distribution],
    engine_files: Iterable[Path],
    progress: Progress | None = None,
) -> Origins:
    """Compare the packages of a bundle with the pinned ones, and their files with their lists.

    Args:
        distributions: What goes in; the project itself is passed over.
        engine_files: The engine's libraries, which go in by device.
        progress: Called with bytes hashed since the last call.
    """
    pins, unseen = read_pins(), set(engine_files)
    other_versions, altered = [], []
    for entry in distributions:
        if entry.name == PROJECT:
            continue
        if (text := _differs(entry, pins)) is not None:
            other_versions.append(text)
        unseen |= {file.source for file in entry.files}
        altered += _find_altered(entry.name, unseen, progress)
    altered += sorted(path.name for path in unseen)  # in no list at all
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return Origins(digest, tuple(other_versions), tuple(altered))


def _differs(entry: Distribution, pins: dict[str, str]) -> str | None:
    pinned = pins.get(entry.name)
    if pinned is None:
        return f"{entry.name} {entry.version} (none is pinned)"
    if pinned != entry.version:
        return f"{entry.name} {entry.version} (pinned: {pinned})"
    # Written by pip for what did not come from an index.
    origin = importlib.metadata.distribution(entry.name).read_text("direct_url.json")
    if origin is None:
        return None
    return f"{entry.name} {entry.version} (installed from {json.loads(origin)['url']})"


def _find_altered(name: str, unseen: set[Path], progress: Progress | None) -> list[str]:
    """Return the files of a distribution whose bytes its list does not vouch for.

    State:
        Files that the list names are taken out of `unseen`; others are not looked at.
    """
    distribution = importlib.metadata.distribution(name)
    altered = []
    for path in distribution.files or ():
        source = Path(str(distribution.locate_file(path)))
        if source not in unseen:
            continue
        unseen.remove(source)
        if path.hash is None or path.hash.value != _hash(path.hash.mode, source):
            altered.append(path.as_posix())
        if progress is not None:
            progress(source.stat().st_size)
    return altered


def _hash(mode: str, path: Path) -> str:
    """Return a file's hash as RECORD writes it; empty for a method that is weak or unknown."""
    if mode not in {"sha256", "sha384", "sha512"}:
        return ""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, mode).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _list(texts: tuple[str, ...]) -> str:
    rest = len(texts) - _MOST_NAMED
    return "; ".join(texts[:_MOST_NAMED]) + (f"; and {rest:,} more" if rest > 0 else "")
