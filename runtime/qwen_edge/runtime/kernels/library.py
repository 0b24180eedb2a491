"""Find the compiled kernels, and which of them this processor can run.

The library is compiled when the project is installed (`hatch_build.py`), where there is a C++
compiler and the system is one that it was written for; without it the engine's own kernels run.
"""

import ctypes
import importlib
import importlib.util
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qwen_edge.profiles.properties import ENGINE_KERNELS, KERNELS
from qwen_edge.runtime.engine import first_line, import_openvino

AUTO = "auto"
_CACHE_PRECISIONS = ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION")
_CACHE_GROUPS = ("KEY_CACHE_GROUP_SIZE", "VALUE_CACHE_GROUP_SIZE")
LIBRARY = Path(__file__).with_name("_kernels.so")


@dataclass(frozen=True)
class KernelLibrary:
    """What there is of our own kernels here.

    Attributes:
        path: The library; None where there is none that can be used.
        names: Kernels that this processor runs, best first: "amx", "avx512-vnni", "avx2-vnni",
            "avx2"; empty with `path` None.
        reason: Why there is none; None where there is one.
        fix: What to do about it, or None.
    """

    path: Path | None
    names: tuple[str, ...] = ()
    reason: str | None = None
    fix: str | None = None


def are_wanted(properties: Mapping[str, object]) -> bool:
    """Whether properties for the CPU leave room for our kernels, which round activations.

    Args:
        properties: OpenVINO's, and our own `KERNELS`.

    Returns:
        True where kernels are named; False where the engine's are, or where nothing is to be
        rounded: dynamic quantisation is off, or accuracy is asked for; or in f16.
    """
    kernels = properties.get(KERNELS, AUTO)
    if kernels != AUTO:
        return kernels != ENGINE_KERNELS
    is_exact = str(properties.get("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == "0"
    is_exact = is_exact or properties.get("EXECUTION_MODE_HINT") == "ACCURACY"
    # In f16 the engine changes every number of the graph to it, and ours take float32.
    return not is_exact and properties.get("INFERENCE_PRECISION_HINT") != "f16"


def has_own_cache(properties: Mapping[str, object]) -> bool:
    """Whether properties for the CPU leave keys and values to a cache of ours, of 8 bits."""
    precisions = {str(properties.get(name, "u8")).lower() for name in _CACHE_PRECISIONS}
    groups = {str(properties.get(name, "0")) for name in _CACHE_GROUPS}
    return precisions == {"u8"} and groups == {"0"}


def are_used(properties: Mapping[str, object]) -> bool:
    """Whether our kernels compute a model that is compiled for the CPU with these properties."""
    if not are_wanted(properties) or importlib.util.find_spec("openvino") is None:
        return False
    return bool(find_kernels().names)


@lru_cache(maxsize=1)
def find_kernels() -> KernelLibrary:
    """Return the kernels for this process; looked for once.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    return open_library(LIBRARY)


def open_library(path: Path) -> KernelLibrary:
    """Load a library of kernels and ask which of them run here.

    Args:
        path: The library.

    State:
        A library that can be loaded stays in the process.
    """
    again = "install a C++ compiler (Debian: apt install g++) and install qwen-edge again"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return KernelLibrary(None, reason="they are written for Linux on x86-64")
    if not path.is_file():
        return KernelLibrary(None, reason="they were not compiled when it was installed", fix=again)
    import_openvino()  # the library is linked with the copy that this loads
    try:
        library = ctypes.CDLL(str(path))
        library.qwen_edge_kernels.restype = ctypes.c_char_p
        names: bytes = library.qwen_edge_kernels()
    except (OSError, AttributeError) as error:
        return KernelLibrary(None, reason=f"they cannot be loaded: {first_line(error)}", fix=again)
    if not names:
        return KernelLibrary(None, reason="this processor has no AVX2")
    return KernelLibrary(path, tuple(names.decode().split(",")))


def make_factory(library: KernelLibrary) -> Any:
    """Return what makes nodes of our operators.

    Args:
        library: With a path.
    """
    # Importing it by name keeps the engine behind `engine.py`, which makes it quiet.
    node_factory = importlib.import_module(f"{import_openvino().__name__}.utils.node_factory")
    factory = node_factory.NodeFactory()
    factory.add_extension(str(library.path))
    return factory
