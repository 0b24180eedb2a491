"""The token loop: prefill a prompt in chunks, then one forward per new token.

It knows ids and a backend, nothing of text, chat or stop conditions: the caller reads the
ids and closes the generator when it has enough. Read `session.py` next.
"""

from collections.abc import Callable, Iterator, Sequence

from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.sampling import Sampler

PREFILL_CHUNK_TOKENS = 512  # used where the package names none; bounds memory, not speed


def generate_tokens(
    backend: Backend,
    prompt_ids: Sequence[int],
    *,
    sample: Sampler,
    max_new_tokens: int,
    prefill_chunk_tokens: int = PREFILL_CHUNK_TOKENS,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Yield new token ids, one per decode step.

    Args:
        backend: Owns the KV cache. Its state advances; it is not reset here.
        prompt_ids: Tokens not yet in the cache. At least one.
        sample: Maps next-token logits, float32 [vocab_size], to a token id.
        max_new_tokens: Upper bound on the number of yields. Zero yields nothing.
        prefill_chunk_tokens: Prompt tokens per forward call, to bound peak memory and the
            time until a cancellation is seen. At least one.
        is_cancelled: Asked before every forward call; True ends the iteration.

    Yields:
        Token ids in order. The stop token, if any, is yielded; the caller decides.

    Raises:
        ValueError: `prompt_ids` is empty or `prefill_chunk_tokens` is below one.

    State:
        After k >= 1 yields the cache holds `len(prompt_ids) + k - 1` more tokens than before:
        the last token yielded has not been fed back yet. Cancelled during prefill, the cache
        holds a whole number of chunks.
    """
    if not prompt_ids:
        raise ValueError("prompt_ids is empty; pass at least one token")
    if prefill_chunk_tokens < 1:
        raise ValueError(f"prefill_chunk_tokens is {prefill_chunk_tokens}; pass at least 1")
    for start in range(0, len(prompt_ids), prefill_chunk_tokens):
        if is_cancelled():
            return
        logits = backend.forward(prompt_ids[start : start + prefill_chunk_tokens])
    for step in range(max_new_tokens):
        if is_cancelled():
            return
        token_id = sample(logits)
        yield token_id
        if step + 1 < max_new_tokens:
            if is_cancelled():
                return
            logits = backend.forward([token_id])
