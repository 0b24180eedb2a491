"""What an ELF file says of itself: which libraries it needs, where it looks for them.

Read by its program headers, as the system's loader reads it, so that nothing is run and no tool
is needed. 64-bit, little-endian files only: other machines are refused elsewhere. It knows no
folder but the file's own; read `shared_libraries.py` for what is done with it.

Source:
    System V gABI (generic part, chapters 4 and 5) and "ELF Symbol Versioning", Linux Standard
    Base 5.0.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01"
_LOAD, _DYNAMIC = 1, 2
_DYNSYM = 11
_NEEDED, _STRTAB, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29
_VERNEED, _VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
_UNDEFINED = 0


@dataclass(frozen=True)
class ElfFacts:
    """What the loader reads of one file.

    Args:
        needed: File names of the libraries it is linked with.
        soname: The name it goes by, or None.
        search_path: Folders it looks in, as written; "$ORIGIN" is its own.
        search_path_at: Offset and length in bytes of that text in the file, or None.
        versions: Library → names of the symbol versions that are needed of it.
        machine: The processor, as `e_machine` says it.
    """

    needed: tuple[str, ...]
    soname: str | None
    search_path: tuple[str, ...]
    search_path_at: tuple[int, int] | None
    versions: Mapping[str, tuple[str, ...]]
    machine: int


class _Reader:
    """Reads numbers and texts of one file by offset and by address."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.machine = struct.unpack_from("<H", data, 18)[0]
        start, size, count = self._table(32, 54)
        self.segments = [
            struct.unpack_from("<IIQQQQQQ", data, start + index * size) for index in range(count)
        ]

    def _table(self, offset_at: int, size_at: int) -> tuple[int, int, int]:
        start: int = struct.unpack_from("<Q", self.data, offset_at)[0]
        size, count = struct.unpack_from("<HH", self.data, size_at)
        return start, size, count

    def offset_of(self, address: int) -> int:
        """Return where in the file an address is."""
        for kind, _, offset, begin, _, size, _, _ in self.segments:
            if kind == _LOAD and begin <= address < begin + size:
                return int(offset + address - begin)
        raise ValueError(f"address {address:#x} lies in no segment")

    def text(self, offset: int) -> str:
        """Return a text that ends in a zero byte."""
        return self.data[offset : self.data.index(0, offset)].decode("utf-8", "surrogateescape")

    def dynamic(self) -> list[tuple[int, int]]:
        """Return the tags of the dynamic section with their values."""
        for kind, _, offset, _, _, size, _, _ in self.segments:
            if kind == _DYNAMIC:
                if offset + size > len(self.data):
                    raise ValueError("the file is shorter than it says")
                tags = list(struct.iter_unpack("<qQ", self.data[offset : offset + size]))
                ends = [index for index, (tag, _) in enumerate(tags) if tag == 0]
                return tags[: ends[0]] if ends else tags
        return []

    def sections(self) -> list[tuple[int, ...]]:
        """Return the section headers; a file may have none."""
        start, size, count = self._table(40, 58)
        return [
            struct.unpack_from("<IIQQQQIIQQ", self.data, start + index * size)
            for index in range(count)
        ]


def is_elf(path: Path) -> bool:
    """Return whether a file is a program or library of this form."""
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def read_elf(path: Path) -> ElfFacts:
    """Read what the loader would.

    Raises:
        ValueError: It is no such file, or damaged.
    """
    reader = _open(path)
    try:
        return _read(reader)
    except (struct.error, IndexError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error


def _open(path: Path) -> _Reader:
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path.name} is no 64-bit ELF file")
    return _Reader(data)


def _read(reader: _Reader) -> ElfFacts:
    tags = reader.dynamic()
    values = dict(tags)
    if _STRTAB not in values:  # a static program
        return ElfFacts((), None, (), None, {}, reader.machine)
    strings = reader.offset_of(values[_STRTAB])
    path_tag = next((tag for tag, _ in tags if tag in (_RPATH, _RUNPATH)), None)
    search_path, search_path_at = "", None
    if path_tag is not None:
        start = strings + values[path_tag]
        search_path = reader.text(start)
        search_path_at = (start, len(search_path.encode("utf-8", "surrogateescape")))
    return ElfFacts(
        needed=tuple(reader.text(strings + value) for tag, value in tags if tag == _NEEDED),
        soname=reader.text(strings + values[_SONAME]) if _SONAME in values else None,
        search_path=tuple(filter(None, search_path.split(":"))),
        search_path_at=search_path_at,
        versions=_read_versions(reader, values, strings),
        machine=reader.machine,
    )


def _read_versions(
    reader: _Reader, values: Mapping[int, int], strings: int
) -> dict[str, tuple[str, ...]]:
    if _VERNEED not in values:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    at = reader.offset_of(values[_VERNEED])
    for _ in range(values[_VERNEEDNUM]):
        _, count, file_name, first, following = struct.unpack_from("<HHIII", reader.data, at)
        names, entry = [], at + first
        for _ in range(count):
            _, _, _, name, step = struct.unpack_from("<IHHII", reader.data, entry)
            names.append(reader.text(strings + name))
            entry += step
        found[reader.text(strings + file_name)] = tuple(names)
        at += following
    return found


def read_symbols(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names a library defines for others, and those it wants of others.

    Raises:
        ValueError: It is no ELF file, or damaged.
    """
    reader = _open(path)
    defined: set[str] = set()
    wanted: set[str] = set()
    sections = reader.sections()
    for section in sections:
        if section[1] != _DYNSYM:
            continue
        offset, size, strings = section[4], section[5], sections[section[6]][4]
        entries = struct.iter_unpack("<IBBHQQ", reader.data[offset : offset + size])
        for name, _, _, home, _, _ in entries:
            if name:
                (wanted if home == _UNDEFINED else defined).add(reader.text(strings + name))
    return frozenset(defined), frozenset(wanted)


def shorten_search_path(path: Path, search_path: str) -> bool:
    """Write another search path over the one a file has, where it fits; returns whether it did.

    The text lies among others, so it may become shorter and never longer.
    """
    place = read_elf(path).search_path_at
    new = search_path.encode("utf-8")
    if place is None or len(new) > place[1]:
        return False
    with path.open("r+b") as stream:
        stream.seek(place[0])
        stream.write(new.ljust(place[1], b"\0"))
    return True


def highest_version(facts: ElfFacts, prefix: str) -> tuple[int, ...]:
    """Return the newest version of a library's interface that a file needs.

    Args:
        facts: The file's.
        prefix: As "GLIBC" in "GLIBC_2.34".

    Returns:
        Its numbers, such as (2, 34); empty where none is needed.
    """
    pattern = re.compile(rf"{re.escape(prefix)}_(\d+(?:\.\d+)*)")
    numbers = [
        tuple(map(int, match[1].split(".")))
        for names in facts.versions.values()
        for match in map(pattern.fullmatch, names)
        if match
    ]
    return max(numbers, default=())
