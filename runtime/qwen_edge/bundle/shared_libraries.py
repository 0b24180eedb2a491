"""Which libraries of the system a bundle must bring along, and where they are here.

Every file of the bundle is asked what it needs; what the bundle does not hold, and what is not
the C library's own, is copied from this system, and asked in turn. The C library and its loader
stay the system's: drivers, name services and locales belong to it.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.bundle.elf import ElfFacts, highest_version, is_elf, read_elf, shorten_search_path
from qwen_edge.errors import DeviceError

C_LIBRARY = frozenset(
    {
        "ld-linux-x86-64.so.2",
        "ld-linux-aarch64.so.1",
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
        "libutil.so.1",
    }
)
"""What every Linux with glibc has; nothing else may be needed of a system."""
DRIVER_LIBRARIES = frozenset({"libOpenCL.so.1", "libze_loader.so.1"})
"""What comes with the driver of a GPU or an NPU, and must fit that driver."""
CXX_LIBRARIES = ("libstdc++.so.6", "libgcc_s.so.1")
"""What drivers need as well: two of them in one process would not get on."""
_LDCONFIG_LINE = re.compile(r"\t(\S+) \(([^)]*)\) => (/.+)")


@dataclass(frozen=True)
class SystemLibrary:
    """One library that is to be copied from this system.

    Args:
        name: The file name that others need it by.
        source: Where it is here, with links followed.
    """

    name: str
    source: Path


class LibraryGatherer:
    """Finds what files need and the bundle lacks.

    Args:
        allowed: Names that the system has to have.

    State:
        Remembers where libraries of this system are.
    """

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed
        self._known = _read_loader_cache()

    def find_missing(
        self, staged: Mapping[Path, Path], machine: int | None = None
    ) -> list[SystemLibrary]:
        """Return the libraries to be added, those that they need in turn among them.

        Args:
            staged: Each ELF file of the bundle → where it was copied from.
            machine: What a library must be made for; not given: what the first file is.

        Raises:
            DeviceError: A library is nowhere on this system; names it and who needs it.
        """
        held = {path.name for path in staged}
        waiting = [(source, read_elf(path)) for path, source in sorted(staged.items())]
        held |= {facts.soname for _, facts in waiting if facts.soname}
        if machine is None and waiting:
            machine = waiting[0][1].machine
        found: dict[str, SystemLibrary] = {}
        while waiting:
            source, facts = waiting.pop()
            for name in facts.needed:
                if name in held or name in self._allowed:
                    continue
                path = self._find(name, source, facts, machine)
                held.add(name)
                found[name] = SystemLibrary(name, path)
                waiting.append((path, read_elf(path)))
        return [found[name] for name in sorted(found)]

    def _find(self, name: str, source: Path, facts: ElfFacts, machine: int | None) -> Path:
        own = [
            Path(entry.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", str(source.parent)))
            for entry in facts.search_path
        ]
        candidates = [folder / name for folder in (*own, source.parent)]
        candidates += self._known.get(name, [])
        candidates += [folder / name for folder in _usual_folders()]
        for path in candidates:
            if path.is_file() and is_elf(path) and machine in (None, read_elf(path).machine):
                return path.resolve()
        raise DeviceError(
            f"{source.name} needs the library {name!r}, which is nowhere on this system.",
            f"install what brings {name} (Debian: apt-file search {name}), then bundle again",
            library=name,
            needed_by=source.name,
        )


def _read_loader_cache() -> dict[str, list[Path]]:
    """Return where the system's loader knows libraries to be; nothing where it does not say."""
    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if program is None:
        return {}
    try:
        done = subprocess.run([program, "-p"], capture_output=True, text=True, check=False)
    except OSError:
        return {}
    found: dict[str, list[Path]] = {}
    for name, _, path in _LDCONFIG_LINE.findall(done.stdout):
        found.setdefault(name, []).append(Path(path))
    return found


def _usual_folders() -> list[Path]:
    triple = sysconfig.get_config_var("MULTIARCH") or ""
    own = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    usual = [f"/lib/{triple}", f"/usr/lib/{triple}", "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
    return [*own, Path(sys.base_prefix) / "lib", *map(Path, usual)]


def find_highest_version(files: Iterable[Path], prefix: str) -> str:
    """Return the newest version of a library's interface that any of the files needs.

    Args:
        files: ELF files.
        prefix: "GLIBC", or "GLIBCXX" for the C++ library's.

    Returns:
        As "2.34"; empty where none is needed.
    """
    numbers = max((highest_version(read_elf(path), prefix) for path in files), default=())
    return ".".join(map(str, numbers))


def forget_machine_paths(path: Path) -> None:
    """Let a copied file look for libraries beside itself, not in a folder of this machine.

    Most files need no search path in a bundle, whose launcher names the folder; but the path of
    another machine's home folder has no business in one.
    """
    facts = read_elf(path)
    if any(not entry.startswith(("$ORIGIN", "${ORIGIN}")) for entry in facts.search_path):
        shorten_search_path(path, "$ORIGIN")
