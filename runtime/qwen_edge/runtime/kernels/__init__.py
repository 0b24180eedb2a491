"""Products with compressed weights by code of our own, in the place of the CPU plugin's.

The plugin repacks every weight when a model first runs (10 s and more for 4 billion, and a second
copy of them in memory) and reads them back at about half of what memory gives. These kernels read
the model's file as it is mapped. `native/` holds them, in C++; `library.py` finds what was
compiled of it, `compressed_weights.py` what of a graph they can compute, `replacement.py` puts
them in.
"""

from qwen_edge.runtime.kernels.library import (
    AUTO,
    KernelLibrary,
    are_used,
    are_wanted,
    find_kernels,
)
from qwen_edge.runtime.kernels.replacement import Replacement, use_kernels

__all__ = [
    "AUTO",
    "KernelLibrary",
    "Replacement",
    "are_used",
    "are_wanted",
    "find_kernels",
    "use_kernels",
]
