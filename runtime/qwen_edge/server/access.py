"""The bearer key: where it comes from, and whether a request has it.

A key is never shown: not in an error, a log line or a `repr`. This module reads no environment
variable itself; read `http_guard.py` for which paths need the key.
"""

import hashlib
import hmac
import os
import secrets
import stat
import sys
from pathlib import Path

from qwen_edge.errors import UsageError

MIN_KEY_CHARS = 16
_MAX_KEY_CHARS = 512
_RANDOM_KEY_BYTES = 32
_OWNER_ONLY = "" if sys.platform == "win32" else " && chmod 600 key.txt"
KEY_FIX = (
    "make a key file and pass it with --api-key-file key.txt:\n"
    f'python -c "import secrets; print(secrets.token_urlsafe())" > key.txt{_OWNER_ONLY}'
)


class AccessKey:
    """One bearer key.

    Args:
        text: Visible ASCII characters, 16 to 512 of them.
        source: Where it came from, for errors: "the file 'key.txt'".

    Raises:
        UsageError: It is empty, too short, too long, or cannot stand in a header.
    """

    def __init__(self, text: str, source: str = "the key") -> None:
        if not text:
            raise UsageError(f"{_begin(source)} holds no key.", KEY_FIX)
        if not MIN_KEY_CHARS <= len(text) <= _MAX_KEY_CHARS:
            raise UsageError(
                f"{_begin(source)} holds {len(text):,} characters; expected a key of "
                f"{MIN_KEY_CHARS} to {_MAX_KEY_CHARS}. Short keys can be guessed.",
                KEY_FIX,
            )
        if not all("!" <= character <= "~" for character in text):
            raise UsageError(
                f"{_begin(source)} holds characters that cannot stand in a header; expected "
                "visible ASCII without spaces, in one line.",
                KEY_FIX,
            )
        self._text = text
        self._digest = _digest(text.encode("ascii"))

    def __repr__(self) -> str:
        """Return a text without the key."""
        return "AccessKey(***)"

    def reveal(self) -> str:
        """Return the key itself, for the ready file and nothing else."""
        return self._text

    def is_in(self, authorization: str | None) -> bool:
        """Return whether an Authorization header carries this key.

        Takes the same time for every key given: digests are compared, so neither the length
        nor the first difference shows.
        """
        scheme, _, given = (authorization or "").partition(" ")
        is_same = hmac.compare_digest(
            _digest(given.strip(" ").encode("utf-8", "replace")), self._digest
        )
        return is_same and scheme.lower() == "bearer"


def make_random_key() -> AccessKey:
    """Return a new key of 256 random bits."""
    return AccessKey(secrets.token_urlsafe(_RANDOM_KEY_BYTES))


def choose_key(file: Path | None, from_environment: str | None) -> AccessKey | None:
    """Return the key of a file, else the environment's, else None.

    Args:
        file: What `--api-key-file` named.
        from_environment: The value of QWEN_EDGE_API_KEY; None where it is not set. An empty
            one is refused: whoever set it wanted a key.
    """
    if file is not None:
        return read_key_file(file)
    if from_environment is not None:
        return AccessKey(from_environment, "the variable QWEN_EDGE_API_KEY")
    return None


def read_key_file(path: Path) -> AccessKey:
    """Read a key from a file of one line that only its owner can read.

    Raises:
        UsageError: It is no such file, others can read it, or it holds no key.
    """
    try:
        # Not blocking: a named pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise UsageError(
            f"The key file '{path}' cannot be read: {error.strerror}.", KEY_FIX
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"The key file '{path}' is not a file.", KEY_FIX)
        _check_mode(path, status.st_mode)
        raw = os.read(descriptor, _MAX_KEY_CHARS + 3)  # with a line end, and one to notice more
    finally:
        os.close(descriptor)
    text = raw.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
    return AccessKey(text, f"the key file '{path}'")


def _check_mode(path: Path, mode: int) -> None:
    """Refuse a file that others may read or change; Windows keeps that elsewhere."""
    if sys.platform == "win32" or not mode & 0o077:
        return
    raise UsageError(
        f"The key file '{path}' is open to other users of this machine "
        f"(mode {stat.S_IMODE(mode):04o}); expected 0600.",
        f"chmod 600 '{path}', and make a new key if others may have read it",
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _begin(source: str) -> str:
    return source[:1].upper() + source[1:]
