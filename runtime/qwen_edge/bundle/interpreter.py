"""The Python of a bundle: a copy of the one that runs, with less of its standard library.

A real interpreter and no frozen program, because the runtime starts itself again as a child to
try models that may crash. `python3._pth` beside it lists the only places it imports from and
switches off every PYTHON… variable, on Linux too (since Python 3.11).
"""

import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from qwen_edge.bundle.systems import System
from qwen_edge.errors import UsageError

STANDARD_LIBRARY_ZIP = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
PACKAGES_ZIP = "packages.zip"
PACKAGES = "packages"
MODULES = "modules"
"""Folder of the standard library's modules that are machine code."""

# Programs, tests, windows, mail and news of forty years, and what writes Python programs.
_LEFT_OUT_MODULES = (
    "test/*", "idlelib/*", "tkinter/*", "turtledemo/*", "turtle.py", "ensurepip/*", "venv/*",
    "lib2to3/*", "distutils/*", "unittest/*", "doctest.py", "pydoc.py", "pydoc_data/*",
    "curses/*", "dbm/*", "sqlite3/*", "msilib/*", "xmlrpc/*", "__phello__/*",
    "cgi.py", "cgitb.py", "antigravity.py", "this.py", "bdb.py", "pdb.py", "trace.py",
    "cProfile.py", "profile.py", "pstats.py", "mailbox.py", "mailcap.py", "nntplib.py",
    "smtplib.py", "ftplib.py", "poplib.py", "imaplib.py", "telnetlib.py", "sndhdr.py", "aifc.py",
    "sunau.py", "wave.py", "chunk.py", "crypt.py", "nturl2path.py", "pickletools.py", "tabnanny.py",
    "config-*/*", "site-packages/*", "dist-packages/*", "lib-dynload/*", "*__pycache__/*",
    "_sysconfigdata*", "_pydecimal.py", "_aix_support.py", "_osx_support.py", "sitecustomize.py",
)  # fmt: skip
# Modules that are machine code: tests, windows, sound, databases, compressors nobody asks for.
# readline: GNU's is under the GPL, and a bundle shall not be; chat edits lines without it.
_LEFT_OUT_LIBRARIES = (
    "_test*", "xx*", "_xx*", "_ctypes_test*", "_tkinter*", "_curses*", "_sqlite3*", "_dbm*",
    "_gdbm*", "readline*", "nis*", "ossaudiodev*", "spwd*", "audioop*", "_lsprof*", "_crypt*",
    "_bz2*", "_lzma*", "_uuid*", "_msi*", "winsound*",
)  # fmt: skip
_SERVER_LIBRARIES = ("_ssl*",)
# Of Python's folder on Windows: the parts that its own embeddable package has as well, and the
# C++ library that the engine needs, where somebody put it there (PyPI: msvc-runtime).
_WINDOWS_LIBRARIES = (
    "python3.dll", "python3[0-9]*.dll", "vcruntime140*.dll", "msvcp140*.dll", "libffi*.dll",
    "libcrypto*.dll", "libssl*.dll",
)  # fmt: skip


@dataclass(frozen=True)
class Interpreter:
    """What of an installed Python goes into a bundle.

    Args:
        version: As "3.11.7".
        program: The interpreter itself.
        libraries: Libraries beside the program (Windows; on Linux they are found by need).
        modules: Modules that are machine code.
        sources: Modules of the standard library, with their names in its zip.
        licence: Its licence text, where it lies beside the library.
    """

    version: str
    program: Path
    libraries: tuple[Path, ...]
    modules: tuple[Path, ...]
    sources: tuple[tuple[Path, str], ...]
    licence: Path | None


def find_interpreter(system: System, *, with_server: bool) -> Interpreter:
    """Return the parts of the Python that runs this.

    Args:
        system: What it runs on.
        with_server: With what only servers need: TLS, which theirs imports and nobody uses.

    Raises:
        UsageError: It is one that cannot be copied.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.implementation.name != "cpython":
        raise UsageError(
            f"Bundles hold CPython; this is {sys.implementation.name} {version}.",
            "install qwen-edge with CPython 3.11 or newer, then bundle again",
        )
    base = Path(sys.base_prefix)
    if system.name == "windows":
        own = Path(sys.prefix)
        found = plan_windows(base, version, (own, own / "Scripts"))
    else:
        program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        found = plan_linux(program, Path(sysconfig.get_path("stdlib")), version)
    if with_server:
        return found
    return replace(
        found,
        libraries=tuple(path for path in found.libraries if not path.name.startswith("libssl")),
        modules=_choose(found.modules, _SERVER_LIBRARIES),
    )


def plan_linux(program: Path, library: Path, version: str) -> Interpreter:
    """Choose the parts of a Python on Linux.

    Args:
        program: The interpreter, no link to it.
        library: Folder of its standard library.
        version: Its version.

    Raises:
        UsageError: The folder is not a standard library.
    """
    _check_library(library)
    modules = _choose(sorted((library / "lib-dynload").glob("*.so")), _LEFT_OUT_LIBRARIES)
    return Interpreter(
        version, program, (), modules, _choose_sources(library), _find_licence(library)
    )


def plan_windows(base: Path, version: str, others: tuple[Path, ...] = ()) -> Interpreter:
    """Choose the parts of a Python on Windows; all lie in one folder, as in its own package.

    Args:
        base: Where python.exe is.
        version: Its version.
        others: Folders of an environment, where packages put libraries.

    Raises:
        UsageError: The folder is not an installed Python.
    """
    library = base / "Lib"
    _check_library(library)
    folders = (*others, base / "DLLs", base)  # the last one counts
    found = [path for folder in folders for path in sorted(folder.glob("*.dll"))]
    libraries = {
        path.name.lower(): path
        for path in found
        if any(fnmatch(path.name.lower(), pattern) for pattern in _WINDOWS_LIBRARIES)
    }
    modules = _choose(sorted((base / "DLLs").glob("*.pyd")), _LEFT_OUT_LIBRARIES)
    return Interpreter(
        version,
        base / "python.exe",
        tuple(libraries[name] for name in sorted(libraries)),
        modules,
        _choose_sources(library),
        _find_licence(base),
    )


def _check_library(library: Path) -> None:
    if not (library / "encodings" / "utf_8.py").is_file():
        raise UsageError(
            f"The standard library of this Python has no sources in {str(library)!r}.",
            "install qwen-edge with a Python that was not itself bundled or zipped",
            folder=str(library),
        )


def _choose(paths: Iterable[Path], left_out: Iterable[str]) -> tuple[Path, ...]:
    patterns = tuple(left_out)
    return tuple(
        path for path in paths if not any(fnmatch(path.name, pattern) for pattern in patterns)
    )


def _choose_sources(library: Path) -> tuple[tuple[Path, str], ...]:
    chosen = []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if not any(fnmatch(name, pattern) for pattern in _LEFT_OUT_MODULES):
            chosen.append((path, name))
    return tuple(chosen)


def _find_licence(folder: Path) -> Path | None:
    for name in ("LICENSE.txt", "LICENSE"):
        if (folder / name).is_file():
            return folder / name
    return None


def name_build_facts() -> str:
    """Return the name of the module in which this Python's build is described (not on Windows)."""
    multiarch = getattr(sys.implementation, "_multiarch", "")
    return f"_sysconfigdata_{sys.abiflags}_{sys.platform}_{multiarch}.py"


BUILD_FACTS = '''"""How this Python was built is left out: it names folders of another machine."""

build_time_vars = {"TZPATH": "/usr/share/zoneinfo:/usr/lib/zoneinfo:/usr/share/lib/zoneinfo"}
'''


def write_search_path(system: System) -> str:
    """Return the text of the file that says where the bundle's Python imports from.

    Args:
        system: On Windows modules that are machine code lie beside the program.
    """
    entries = [STANDARD_LIBRARY_ZIP, PACKAGES_ZIP, PACKAGES]
    entries.append("." if system.name == "windows" else MODULES)
    return "\n".join(entries) + "\n"
