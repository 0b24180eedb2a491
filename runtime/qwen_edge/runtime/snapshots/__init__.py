"""Snapshots: the KV cache of a conversation or of a system prompt, in a file and back.

`snapshot_file.py` saves and loads, `container.py` is the file's form, `binding.py` says what a
snapshot belongs to, and `warm_prompt.py` is the one that a package may bring along. Packing the
cache is the backends' business: `backends/row_codec.py`.
"""

from qwen_edge.runtime.snapshots.binding import SnapshotBinding, bind_package
from qwen_edge.runtime.snapshots.snapshot_file import (
    LoadedSnapshot,
    SavedSnapshot,
    load_snapshot,
    save_snapshot,
)

__all__ = [
    "LoadedSnapshot",
    "SavedSnapshot",
    "SnapshotBinding",
    "bind_package",
    "load_snapshot",
    "save_snapshot",
]
