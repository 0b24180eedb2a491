"""The backend for a prepared and compiled decoder: over the engine's cache, or over ours."""

from typing import Any

from qwen_edge.runtime.backends.decoder_preparing import Prepared
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.backends.openvino_own_cache import OwnCacheBackend
from qwen_edge.runtime.kernels import find_kernels


def make_decoder_backend(
    compiled: Any,
    prepared: Prepared,
    *,
    device: str,
    max_context_tokens: int,
    prefill_chunk_tokens: int,
) -> OpenVinoBackend | OwnCacheBackend:
    """Return a backend with an empty cache of its own.

    Args:
        compiled: What `compile_model` returned for the prepared model.
        prepared: What `prepare_decoder` returned for it.
        device: For messages.
        max_context_tokens: Most tokens in the cache.
        prefill_chunk_tokens: Most tokens per call of the engine.
    """
    limits = {
        "max_context_tokens": max_context_tokens,
        "prefill_chunk_tokens": prefill_chunk_tokens,
    }
    kept = prepared.keeps_alive
    library = find_kernels().path
    if prepared.cache is None or library is None:
        return OpenVinoBackend(compiled, device=device, keeps_alive=kept, **limits)
    return OwnCacheBackend(
        compiled, prepared.cache, library, device=device, keeps_alive=kept, **limits
    )
