"""What a source file must be, and the check that it is: size, SHA-256, git object id.

It does not know where files come from; see `hub.py` and `source.py`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file of a checkpoint as its source describes it.

    Attributes:
        name: Plain file name, no folder in it.
        size_bytes: Length in bytes.
        sha256: 64 hexadecimal digits, or None where the source gives none.
        git_oid: Git's name of the content (40 digits), for files that the hub keeps in
            git itself; None for large files and for local folders.
    """

    name: str
    size_bytes: int
    sha256: str | None = None
    git_oid: str | None = None

    @property
    def content_id(self) -> str | None:
        """What names the content: the SHA-256, else the git object id, else None."""
        return self.sha256 or self.git_oid


class _Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def hash_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    return _hash(path, hashlib.sha256())


def hash_git_blob(path: Path) -> str:
    """Return the object id that git gives this content, as 40 hexadecimal digits.

    Source: `git hash-object`: SHA-1 over "blob <size>", a zero byte and the content.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % path.stat().st_size)
    return _hash(path, digest)


def describe_mismatch(path: Path, expected: SourceFile) -> str | None:
    """Return how a file differs from what it should be, or None when it is the same.

    Args:
        path: The file at hand.
        expected: Size and, where known, digest.

    Returns:
        A text with the expected and the actual value, or None.
    """
    if not path.is_file():
        return "is not a regular file"
    size_bytes = path.stat().st_size
    if size_bytes != expected.size_bytes:
        return f"has {size_bytes:,} bytes where {expected.size_bytes:,} are expected"
    if expected.sha256 is not None:
        return _differing("SHA-256", hash_sha256(path), expected.sha256)
    if expected.git_oid is not None:
        return _differing("git object id", hash_git_blob(path), expected.git_oid)
    return None


def _differing(kind: str, actual: str, expected: str) -> str | None:
    if actual == expected:
        return None
    return f"has the {kind} {actual} where {expected} is expected"


def _hash(path: Path, digest: _Digest) -> str:
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
