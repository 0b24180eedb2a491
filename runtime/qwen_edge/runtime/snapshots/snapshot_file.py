"""Saving a snapshot of a cache to a file, and loading it where it belongs.

A file holds the tokens, what the backend kept for them, and what its owner wants to remember of
the conversation. Loading checks everything that can be checked without touching a cache: what it
returns only has to be restored. Read `container.py` for the bytes.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_edge.errors import ContextFullError, ResourceError, UsageError, format_bytes
from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.backends.checks import find_other_setting
from qwen_edge.runtime.files.replacing import write_atomically
from qwen_edge.runtime.schema import SchemaError, parse_json
from qwen_edge.runtime.snapshots.binding import SnapshotBinding
from qwen_edge.runtime.snapshots.container import (
    Array,
    OpenSnapshot,
    SnapshotHeader,
    damaged,
    is_container,
    open_container,
    write_container,
)

MAX_CONVERSATION_BYTES = 64 << 20
_MAX_OTHER_BYTES = MAX_CONVERSATION_BYTES + (2 << 20)  # besides the cache, and its header
_ID_BYTES = 8


@dataclass(frozen=True)
class SavedSnapshot:
    """What was written: where, how many tokens and how many bytes."""

    path: Path
    num_tokens: int
    num_bytes: int


@dataclass(frozen=True)
class LoadedSnapshot:
    """What was read: the cache, to be restored, and the conversation, as it was given."""

    cache: CacheSnapshot
    conversation: Mapping[str, Any] | None


def save_snapshot(
    path: Path | str,
    cache: CacheSnapshot,
    *,
    binding: SnapshotBinding,
    conversation: Mapping[str, Any] | None = None,
) -> SavedSnapshot:
    """Write a snapshot to a file, in the place of an earlier one.

    Args:
        path: The file. One that is there must be a snapshot itself, or empty.
        cache: What a backend's `snapshot` returned.
        binding: What it belongs to.
        conversation: Plain data to remember with it.

    Raises:
        UsageError: The path cannot be written, or is that of another kind of file; or the
            conversation is no plain data, or too long.
        ResourceError: The disk is full.

    State:
        Whatever happens, and even if the process is killed, the file is the old or the new one.
    """
    path = Path(path)
    _check_target(path)
    text = b"" if conversation is None else _to_text(conversation)
    ids = np.array(cache.token_ids, dtype=np.int32)
    arrays: list[Array] = [ids, np.frombuffer(text, dtype=np.uint8), *cache.arrays]
    facts = {
        "package": binding.package,
        "package_hash": binding.package_hash,
        "settings": dict(binding.settings),
        "kind": cache.kind,
        "vocab_size": cache.vocab_size,
        "engine_settings": dict(cache.settings),
        "num_tokens": len(cache.token_ids),
    }
    write_atomically(path, lambda stream: write_container(stream, arrays, facts))
    return SavedSnapshot(path, len(cache.token_ids), path.stat().st_size)


def load_snapshot(path: Path | str, *, binding: SnapshotBinding, max_tokens: int) -> LoadedSnapshot:
    """Read a snapshot that belongs to a model.

    Args:
        path: The file.
        binding: What it must belong to.
        max_tokens: Most tokens of the model's context.

    Returns:
        The cache, to be given to the backend's `restore`, which is where a kind of backend or
        arrays that do not fit are refused.

    Raises:
        UsageError: There is no such file; or it belongs to another package, other settings or
            another version of the engine. The text says which.
        ContextFullError: It has more tokens than the context.
        PackageError: It is no snapshot, or damaged, cut short or of a newer form.
        ResourceError: Memory did not suffice.
    """
    with open_bound(Path(path), binding=binding, max_tokens=max_tokens) as opened:
        return read_bound(opened)


@contextlib.contextmanager
def open_bound(path: Path, *, binding: SnapshotBinding, max_tokens: int) -> Iterator[OpenSnapshot]:
    """Open a snapshot and check what it belongs to; its arrays are not read yet.

    Raises:
        EdgeError: As `load_snapshot`.
    """
    max_bytes = max_tokens * (binding.max_token_bytes + _ID_BYTES) + _MAX_OTHER_BYTES
    with open_container(path, max_bytes=max_bytes) as opened:
        _check_binding(path, opened.header, binding)
        num_tokens = opened.header.num_tokens
        if num_tokens > max_tokens:
            raise ContextFullError(
                f"The snapshot {str(path)!r} has {num_tokens:,} tokens, but the context holds "
                f"{max_tokens:,}.",
                "load the model with the context it had, or start a new conversation.",
                needed_tokens=num_tokens,
                max_context_tokens=max_tokens,
            )
        yield opened


def read_bound(opened: OpenSnapshot) -> LoadedSnapshot:
    """Read the rest of a snapshot that was opened.

    Raises:
        PackageError: It is damaged.
        ResourceError: Memory did not suffice.
    """
    header = opened.header
    try:
        ids, text, *arrays = opened.read_arrays()
    except MemoryError as error:
        num_bytes = sum(entry.num_bytes for entry in header.arrays)
        raise ResourceError(
            f"Memory did not suffice to read the snapshot {str(opened.path)!r} of "
            f"{format_bytes(num_bytes)}.",
            "close other programs.",
            path=str(opened.path),
        ) from error
    if ids.size and not (ids.min() >= 0 and ids.max() < header.vocab_size):
        raise damaged(opened.path, f"it has ids outside 0 to {header.vocab_size - 1:,}")
    for array in arrays:
        array.flags.writeable = False
    cache = CacheSnapshot(
        kind=header.kind,
        vocab_size=header.vocab_size,
        token_ids=tuple(ids.tolist()),
        arrays=tuple(arrays),
        settings=dict(header.engine_settings),
    )
    return LoadedSnapshot(cache, _from_text(opened.path, text))


def _check_target(path: Path) -> None:
    """Refuse to replace what is no snapshot."""
    try:
        if path.is_dir():
            raise UsageError(
                f"{str(path)!r} is a folder.", "give the path of a file.", path=str(path)
            )
        is_other = path.exists() and path.stat().st_size > 0 and not is_container(path)
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be looked at: {error.strerror or error}.",
            "choose another place.",
            path=str(path),
        ) from error
    if is_other:
        raise UsageError(
            f"{str(path)!r} exists and is no snapshot. It is not replaced.",
            "choose another name, or remove it first.",
            path=str(path),
        )


def _check_binding(path: Path, header: SnapshotHeader, binding: SnapshotBinding) -> None:
    """Refuse a snapshot of another package, of other settings or of another engine."""
    if header.package_hash != binding.package_hash:
        raise UsageError(
            f"The snapshot {str(path)!r} belongs to the package {header.package!r} "
            f"({header.package_hash[:12]}), and this is {binding.package!r} "
            f"({binding.package_hash[:12]}).",
            "load it with the package it was saved with, or start a new conversation.",
            path=str(path),
            found=header.package_hash,
            expected=binding.package_hash,
        )
    # Without arrays there are only ids, which the package alone decides over.
    problem = None
    if len(header.arrays) > 2:
        problem = find_other_setting(header.settings, binding.settings)
    if problem is not None:
        raise UsageError(
            f"The snapshot {str(path)!r} does not fit the model as it is loaded: {problem}. Its "
            "numbers would not be those that this one computes.",
            "load the model with those settings, or start a new conversation.",
            path=str(path),
            found=dict(header.settings),
            expected=dict(binding.settings),
        )


def _to_text(conversation: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(conversation, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"The conversation cannot be saved: {error}.", "use plain texts, numbers and lists."
        ) from error
    if len(text) > MAX_CONVERSATION_BYTES:
        raise UsageError(
            f"The conversation has {format_bytes(len(text))} of text; the limit is "
            f"{format_bytes(MAX_CONVERSATION_BYTES)}.",
            "save a shorter one.",
        )
    return text


def _from_text(path: Path, text: Array) -> Mapping[str, Any] | None:
    if not text.size:
        return None
    try:
        conversation = parse_json(text.tobytes())
    except SchemaError as error:
        raise damaged(path, f"its conversation is no JSON ({error})") from error
    if not isinstance(conversation, dict):
        raise damaged(path, "its conversation is no object")
    return conversation
