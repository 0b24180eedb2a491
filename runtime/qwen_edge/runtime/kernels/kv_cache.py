"""Keys and values of one sequence in memory of our own, outside the engine."""

import ctypes
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import ResourceError
from qwen_edge.runtime.kernels.attention import CacheShape

Blocks = npt.NDArray[np.uint8]
"""uint8 [kv_heads, blocks of 16 tokens, bytes]: what the cache holds of a layer's first tokens."""
BLOCK_TOKENS = 16  # as kCacheBlock in native/kernels.hpp
_GROUP = 32
_SCALE_BYTES = 2


class KvCache:
    """Memory for the keys and values of one sequence; it grows as operators append to it.

    Whole numbers of 8 bits, with a scale for 32 of them: 34 bytes a number's 32, in each layer
    and head for a key and for a value.

    Args:
        path: The library of kernels.
        shape: Of the model.

    State:
        Given back when the object is let go, or by `close`. How many tokens count is the caller's
        to know; what lies beyond is written over.

    Raises:
        ResourceError: Memory ran out.
    """

    def __init__(self, path: Path, shape: CacheShape) -> None:
        self._library = _open(path)
        self.shape = shape
        self.number: int = self._library.qwen_edge_cache_create(
            shape.num_layers, shape.num_kv_heads, shape.head_dim
        )
        if not self.number:
            raise _no_memory()
        self.close = weakref.finalize(self, self._library.qwen_edge_cache_free, self.number)

    def clear(self) -> None:
        """Give the memory of all tokens back."""
        self._library.qwen_edge_cache_clear(self.number)

    def read(self, layer: int, num_tokens: int) -> Blocks:
        """Return a copy of a layer's first tokens; numbers beyond the last are zeros.

        Raises:
            ValueError: There are not so many.
        """
        blocks: Blocks = np.empty(self.blocks_shape(num_tokens), dtype=np.uint8)
        if not self._library.qwen_edge_cache_read(
            self.number, layer, num_tokens, blocks.ctypes.data
        ):
            raise ValueError(f"layer {layer} of the cache has not {num_tokens:,} tokens")
        return blocks

    def write(self, layer: int, num_tokens: int, blocks: Blocks) -> None:
        """Put tokens in the place of a layer's first ones.

        Args:
            layer: From 0 to the shape's number of layers.
            num_tokens: How many.
            blocks: What `read` returned for so many; C-contiguous.

        Raises:
            ResourceError: Memory ran out.
            ValueError: The blocks have another shape.
        """
        if blocks.shape != self.blocks_shape(num_tokens) or blocks.dtype != np.uint8:
            raise ValueError(
                f"blocks are {blocks.dtype} {blocks.shape}, expected uint8 "
                f"{self.blocks_shape(num_tokens)}"
            )
        blocks = np.ascontiguousarray(blocks)
        if not self._library.qwen_edge_cache_write(
            self.number, layer, num_tokens, blocks.ctypes.data
        ):
            raise _no_memory()

    def blocks_shape(self, num_tokens: int) -> tuple[int, int, int]:
        """Return the shape of the blocks of so many tokens."""
        head_dim = self.shape.head_dim
        of_half = BLOCK_TOKENS * (head_dim + head_dim // _GROUP * _SCALE_BYTES)
        return self.shape.num_kv_heads, -(-num_tokens // BLOCK_TOKENS), 2 * of_half


def _no_memory() -> ResourceError:
    return ResourceError(
        "Memory ran out for the keys and values of a conversation.",
        "close other programs, or start a new conversation.",
    )


@lru_cache(maxsize=4)
def _open(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    number, count, data = ctypes.c_int32, ctypes.c_int, ctypes.c_void_p
    for name, result, arguments in (
        ("create", number, (count, count, count)),
        ("free", None, (number,)),
        ("clear", None, (number,)),
        ("read", count, (number, count, count, data)),
        ("write", count, (number, count, count, data)),
    ):
        function = getattr(library, f"qwen_edge_cache_{name}")
        function.restype, function.argtypes = result, arguments
    return library
