"""Compile the C++ kernels into the source tree, for the machine this runs on.

    python scripts/build_kernels.py [--force]

Needs a C++ compiler (GCC 12 or newer, or Clang) and the `openvino` package, whose headers and
libraries they are compiled against. Standard library only: `hatch_build.py` uses it when the
project is installed.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "runtime/qwen_edge/runtime/kernels"
NATIVE = KERNELS / "native"
LIBRARY = KERNELS / "_kernels.so"
_STAMP = KERNELS / "_kernels.stamp"
# GCC 12 calls its own intrinsics uninitialised.
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
_FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# Numbers must not depend on which of two loops the compiler fused a multiplication into a sum.
_FLAGS += ["-ffp-contract=off"]
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
# A check that fails names its source file. Without the folders of this machine before it: they are
# nobody's business, and the same sources give the same library wherever they lie.
_FOLDERS = "-ffile-prefix-map={folder}={name}"
# Each file has the instructions that it was written for; what runs is decided at run time.
SOURCES = {
    "extension.cpp": [],
    "compressed_matmul.cpp": [],
    "cached_attention.cpp": [],
    "decoder_layers.cpp": [],
    "products.cpp": [],
    "weights.cpp": [],
    "attending.cpp": [],
    "kv_cache.cpp": [],
    "choices.cpp": [],
    "avx2.cpp": _AVX2,
    "avx2_vnni.cpp": [*_AVX2, "-mavxvnni"],
    "avx512_vnni.cpp": _AVX512,
    "amx_bf16.cpp": [*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}


class BuildError(Exception):
    """Why there are no kernels; its text is for people."""


def find_reason_against() -> str | None:
    """Return why they cannot be compiled for this system at all, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they are written for Linux on x86-64, this is {sys.platform} {platform.machine()}"
    return None


def build(*, force: bool = False) -> Path:
    """Compile and link, unless what is there is of the same sources.

    Returns:
        The library.

    Raises:
        BuildError: Something that is needed is missing, or the compiler failed.
    """
    reason = find_reason_against()
    if reason is not None:
        raise BuildError(reason)
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("there is no C++ compiler (Debian: apt install g++)")
    openvino = _find_openvino()
    stamp = _make_stamp(compiler, openvino)
    if not force and LIBRARY.is_file() and _STAMP.is_file() and _STAMP.read_text() == stamp:
        return LIBRARY
    for path in (LIBRARY, _STAMP):
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=KERNELS, prefix="_kernels.") as folder:
        library = _compile(compiler, openvino, Path(folder))
        library.replace(LIBRARY)
    _STAMP.write_text(stamp)
    return LIBRARY


def _find_openvino() -> Path:
    found = importlib.util.find_spec("openvino")
    if found is None or not found.submodule_search_locations:
        raise BuildError("the package openvino is not installed")
    return Path(found.submodule_search_locations[0])


def _make_stamp(compiler: str, openvino: Path) -> str:
    digest = hashlib.sha256(repr((compiler, _FLAGS, _FOLDERS, SOURCES)).encode())
    for path in sorted(NATIVE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(" ".join(path.name for path in _libraries(openvino)).encode())
    return digest.hexdigest()


def _libraries(openvino: Path) -> list[Path]:
    """Return what is linked with; whoever loads the result has loaded these before."""
    found = []
    for pattern in ("libopenvino.so.*", "libtbb.so.*"):
        files = sorted((openvino / "libs").glob(pattern))
        if not files:
            raise BuildError(f"{openvino / 'libs'} has no {pattern}")
        found.append(files[0])
    return found


def _compile(compiler: str, openvino: Path, folder: Path) -> Path:
    folders = [
        _FOLDERS.format(folder=NATIVE, name="native"),
        _FOLDERS.format(folder=openvino, name="openvino"),
    ]

    def compile_one(item: tuple[str, list[str]]) -> str:
        source, flags = item
        target = folder / f"{source}.o"
        include = ["-isystem", str(openvino / "include")]
        options = [*_FLAGS, *flags, *folders, *include]
        _run([compiler, *options, "-c", str(NATIVE / source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, SOURCES.items()))
    library = folder / LIBRARY.name
    libraries = [str(path) for path in _libraries(openvino)]
    _run([compiler, "-shared", "-Wl,-s", *objects, *libraries, "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"the compiler failed: {' '.join(command)}\n{done.stderr.strip()}")
    if done.stderr.strip():
        print(done.stderr.strip(), file=sys.stderr)


def main() -> None:
    """Compile; the last line printed is the library."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="also where nothing changed")
    arguments = parser.parse_args()
    try:
        print(build(force=arguments.force))
    except BuildError as error:
        sys.exit(f"Error: the kernels were not compiled: {error}")


if __name__ == "__main__":
    main()
