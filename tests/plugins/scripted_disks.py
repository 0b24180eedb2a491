"""Disks that count, fail, end the process or record, to be put in the place of the real one.

    with using_disk(FailingDisk(7, OSError(errno.EIO, "broken"))):
        export(request)

A loop over the number until a run ends without reaching it tries every operation there is, those of
code that is written later as well.
"""

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qwen_edge.runtime.files.disk import Disk

GROWING = frozenset({"create", "write", "make_folder"})
"""What needs room on the disk: these fail on a full one."""


class WatchedDisk(Disk):
    """Calls `before` ahead of each operation, and does it."""

    def __init__(self) -> None:
        self.open_paths: dict[int, Path] = {}

    def before(self, operation: str, path: Path) -> None:
        """Look at an operation that is about to be done; an error from it prevents it."""

    def create(self, path: Path, *, is_new: bool = False) -> int:
        self.before("create", path)
        descriptor = super().create(path, is_new=is_new)
        self.open_paths[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        self.before("write", self.open_paths[descriptor])
        return super().write(descriptor, data)

    def close(self, descriptor: int) -> None:
        path = self.open_paths.pop(descriptor)  # another thread may be given the number at once
        super().close(descriptor)
        self.before("close", path)

    def note(self, path: Path) -> None:
        self.before("note", path)

    def sync(self, path: Path) -> None:
        self.before("sync", path)
        super().sync(path)

    def make_folder(self, path: Path) -> None:
        self.before("make_folder", path)
        super().make_folder(path)

    def rename(self, path: Path, target: Path) -> None:
        self.before("rename", path)
        super().rename(path, target)

    def exchange(self, path: Path, other: Path) -> bool:
        self.before("exchange", path)
        return super().exchange(path, other)

    def remove_file(self, path: Path) -> None:
        self.before("remove_file", path)
        super().remove_file(path)

    def remove_folder(self, path: Path) -> None:
        self.before("remove_folder", path)
        super().remove_folder(path)


class CountingDisk(WatchedDisk):
    """Remembers every operation by its name and its file's."""

    def __init__(self, *, can_exchange: bool = True) -> None:
        super().__init__()
        self.operations: list[tuple[str, str]] = []
        self._can_exchange = can_exchange

    def before(self, operation: str, path: Path) -> None:
        self.operations.append((operation, path.name))

    def exchange(self, path: Path, other: Path) -> bool:
        return self._can_exchange and super().exchange(path, other)


class FailingDisk(CountingDisk):
    """Raises an error instead of the n-th operation.

    Args:
        number: Which one, from 1.
        error: What is raised.
        lasting: All later operations that need room fail as well, as on a full disk.
        can_exchange: The file system swaps two names in one step.
    """

    def __init__(
        self, number: int, error: BaseException, *, lasting: bool = False, can_exchange: bool = True
    ) -> None:
        super().__init__(can_exchange=can_exchange)
        self.struck: tuple[str, str] | None = None
        self._number = number
        self._error = error
        self._lasting = lasting

    def before(self, operation: str, path: Path) -> None:
        super().before(operation, path)
        count = len(self.operations)
        again = self._lasting and count > self._number and operation in GROWING
        if count == self._number or again:
            self.struck = self.struck or self.operations[-1]
            raise self._error


class KillingDisk(CountingDisk):
    """Ends this process by SIGKILL instead of the n-th operation."""

    def __init__(self, number: int, *, can_exchange: bool = True) -> None:
        super().__init__(can_exchange=can_exchange)
        self._number = number

    def before(self, operation: str, path: Path) -> None:
        super().before(operation, path)
        if len(self.operations) == self._number:
            os.kill(os.getpid(), signal.SIGKILL)


class SmallDisk(WatchedDisk):
    """Has room for so many bytes in one folder.

    Args:
        folder: Whose files are counted.
        room_bytes: For all of them together.
    """

    def __init__(self, folder: Path, room_bytes: int) -> None:
        super().__init__()
        self.room_bytes = room_bytes
        self._folder = folder

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        if self.open_paths[descriptor].parent == self._folder:
            if len(data) > self.room_bytes:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room_bytes -= len(data)
        return super().write(descriptor, data)


@dataclass
class _Node:
    """A file's bytes or a folder's entries: as they are, and as they are on the disk for sure."""

    is_folder: bool
    content: bytes = b""
    synced: bytes = b""
    entries: dict[str, "_Node"] = field(default_factory=dict)
    synced_entries: dict[str, "_Node"] = field(default_factory=dict)


Tree = dict[str, bytes]
"""Path below the recorded root, with "/" → a file's bytes."""


class RecordingDisk(WatchedDisk):
    """Does everything, and yields after each operation what a crash then could leave.

    A crash may keep or lose what was not forced to the disk: names that a folder got since it was
    synced, bytes that a file got since it was. `states` are all combinations of {names kept, names
    lost} and {bytes kept, lost, zeros in their place, the last file half}.

    Args:
        root: An existing folder; operations below it are recorded. What it holds is taken to be
            safe on the disk.
        can_exchange: The file system swaps two names in one step.
    """

    def __init__(self, root: Path, *, can_exchange: bool = True) -> None:
        super().__init__()
        self.states: list[tuple[str, Tree]] = []
        self.num_operations = 0
        self._root_path = root
        self._root = _load(root)
        self._written: _Node | None = None
        self._can_exchange = can_exchange

    def create(self, path: Path, *, is_new: bool = False) -> int:
        descriptor = super().create(path, is_new=is_new)
        parent = self._find(path.parent)
        if parent is not None:
            node = parent.entries.setdefault(path.name, _Node(is_folder=False))
            node.content = b""
            self._done(f"create {path.name}", node)
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        count = super().write(descriptor, data)
        path = self.open_paths[descriptor]
        node = self._find(path)
        if node is not None:
            before, after = node.content[:start], node.content[start + count :]
            node.content = before + bytes(data[:count]) + after
            self._done(f"write {path.name}", node)
        return count

    def note(self, path: Path) -> None:
        parent = self._find(path.parent)
        if parent is not None and path.exists():
            node = parent.entries.setdefault(path.name, _Node(is_folder=False))
            node.content = path.read_bytes()
            self._done(f"note {path.name}", node)

    def sync(self, path: Path) -> None:
        super().sync(path)
        node = self._find(path)
        if node is not None:
            node.synced, node.synced_entries = node.content, dict(node.entries)
            self._done(f"sync {path.name}")

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        parent = self._find(path.parent)
        if parent is not None:
            parent.entries[path.name] = _Node(is_folder=True)
            self._done(f"make {path.name}")

    def rename(self, path: Path, target: Path) -> None:
        super().rename(path, target)
        old, new = self._find(path.parent), self._find(target.parent)
        if old is not None and new is not None:
            new.entries[target.name] = old.entries.pop(path.name)
            self._done(f"rename {path.name}")

    def exchange(self, path: Path, other: Path) -> bool:
        if not self._can_exchange or not super().exchange(path, other):
            return False
        old, new = self._find(path.parent), self._find(other.parent)
        assert old is not None
        assert new is not None
        pair = old.entries[path.name], new.entries[other.name]
        new.entries[other.name], old.entries[path.name] = pair
        self._done(f"exchange {path.name}")
        return True

    def remove_file(self, path: Path) -> None:
        super().remove_file(path)
        self._forget(path)

    def remove_folder(self, path: Path) -> None:
        super().remove_folder(path)
        self._forget(path)

    def _forget(self, path: Path) -> None:
        parent = self._find(path.parent)
        if parent is not None:
            parent.entries.pop(path.name, None)
            self._done(f"remove {path.name}")

    def _find(self, path: Path) -> _Node | None:
        if not path.is_relative_to(self._root_path):
            return None
        node: _Node | None = self._root
        for part in path.relative_to(self._root_path).parts:
            node = None if node is None else node.entries.get(part)
        return node

    def _done(self, what: str, written: _Node | None = None) -> None:
        self.num_operations += 1
        self._written = written or self._written
        for names in ("kept", "lost"):
            for data in ("kept", "lost", "zeros", "half"):
                tree = dict(self._walk(self._root, "", names, data))
                self.states.append((f"{what}: names {names}, bytes {data}", tree))

    def _walk(self, node: _Node, path: str, names: str, data: str) -> Iterator[tuple[str, bytes]]:
        entries = node.entries if names == "kept" else node.synced_entries
        for name, child in entries.items():
            below = f"{path}{name}"
            if child.is_folder:
                yield f"{below}/", b""
                yield from self._walk(child, f"{below}/", names, data)
            else:
                yield below, self._bytes(child, data)

    def _bytes(self, node: _Node, data: str) -> bytes:
        if data == "kept" or node.content == node.synced:
            return node.content
        if data == "zeros":
            return bytes(len(node.content))
        if data == "half":
            is_last = node is self._written
            return node.content[: len(node.content) // 2] if is_last else node.content
        return node.synced


def _load(path: Path) -> _Node:
    """Return what a folder holds, as safe on the disk."""
    node = _Node(is_folder=True)
    for entry in path.iterdir():
        if entry.is_dir():
            node.entries[entry.name] = _load(entry)
        else:
            content = entry.read_bytes()
            node.entries[entry.name] = _Node(is_folder=False, content=content, synced=content)
    node.synced_entries = dict(node.entries)
    return node
