"""Products with compressed weights and attention by code of our own, not by the CPU plugin's.

The plugin repacks every weight when a model first runs (10 s and more for 4 billion, and a second
copy of them in memory) and reads them back at about half of what memory gives; its attention reads
the whole cache again for every token of a call. `native/` holds our kernels, in C++; `library.py`
finds what was compiled of it. `compressed_weights.py` says what products of a graph they can
compute, and `replacement.py` puts them in; `attention.py` does so for attention, whose keys and
values lie in a `kv_cache.py`, and `layers.py` for layers as a whole.
"""

from qwen_edge.runtime.kernels.attention import CACHE, CacheShape, build_attention, use_attention
from qwen_edge.runtime.kernels.kv_cache import KvCache
from qwen_edge.runtime.kernels.layers import LayersReplacement, use_layers
from qwen_edge.runtime.kernels.library import (
    AUTO,
    KernelLibrary,
    are_used,
    are_wanted,
    find_kernels,
    has_own_cache,
)
from qwen_edge.runtime.kernels.replacement import Replacement, use_kernels

__all__ = [
    "AUTO",
    "CACHE",
    "CacheShape",
    "KernelLibrary",
    "KvCache",
    "LayersReplacement",
    "Replacement",
    "are_used",
    "are_wanted",
    "build_attention",
    "find_kernels",
    "has_own_cache",
    "use_attention",
    "use_kernels",
    "use_layers",
]
