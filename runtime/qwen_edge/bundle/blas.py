"""A small library in the place of OpenBLAS, which NumPy cannot be loaded without.

The runtime multiplies no matrices in NumPy and solves no equations. So the bundle's NumPy gets
`native/plain_blas.c`, which gives the same results slowly, for its products; and in place of its
linear algebra a module whose every use is refused. Where there is no C compiler, or NumPy wants
names that the small library has not, OpenBLAS stays.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from qwen_edge.bundle.elf import read_symbols
from qwen_edge.runtime.files.writing import copy_file

_SOURCE = Path(__file__).with_name("native") / "plain_blas.c"
BUILT = Path(__file__).with_name("_plain_blas.so")
"""Where the compiled library is when the project was installed with it."""
_FLAGS = ["-O2", "-std=c11", "-fPIC", "-shared", "-fvisibility=hidden", "-nostdlib", "-Wl,-s"]
# Complex products as they are written, without calls for infinities.
_FLAGS += ["-fcx-limited-range"]
REPLACED_LIBRARY = "libscipy_openblas64_"
"""How the name of OpenBLAS begins in NumPy's wheels for Linux."""
LEFT_OUT_LIBRARIES = ("libgfortran", "libquadmath")
"""What only OpenBLAS needs."""
LINEAR_ALGEBRA = ("numpy/linalg/_umath_linalg.", "numpy/linalg/lapack_lite.")
"""NumPy's modules that want LAPACK of it."""
LINEAR_ALGEBRA_STUB = '''"""Stands where NumPy's linear algebra was: this bundle has no LAPACK."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise RuntimeError(f"numpy.linalg needs LAPACK ({name}), which this bundle leaves out")
'''


def build_plain_blas(target: Path) -> str | None:
    """Put the small library at a path.

    Args:
        target: Where it is to be; its folder exists.

    Returns:
        None when it is there; else why it could not be made.
    """
    if BUILT.is_file():
        copy_file(BUILT, target)
        return None
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        return "there is no C compiler (Debian: apt install gcc)"
    command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return f"the C compiler failed: {lines[0]:.200}"
    return None


def find_unmet(plain: Path, users: Iterable[Path], replaced: Path) -> list[str]:
    """Return the names that NumPy wants of OpenBLAS and the small library has not.

    Args:
        plain: The small library.
        users: NumPy's modules that are kept.
        replaced: OpenBLAS.

    Raises:
        ValueError: A file is damaged.
    """
    offered, _ = read_symbols(plain)
    replaced_names, _ = read_symbols(replaced)
    wanted = {name for path in users for name in read_symbols(path)[1]}
    return sorted((wanted & replaced_names) - offered)


def can_be_replaced() -> bool:
    """Return whether this system is one that the small library was written for."""
    return sys.platform == "linux"
