"""Cutting what is fed into calls of the engine: each of bounded size, the last with what it needs.

The engine gives logits of its last call only, so all tokens that are to be scored go into that.
"""

from collections.abc import Iterator, Sequence


def cut_into_chunks(
    token_ids: Sequence[int], chunk_tokens: int, num_scored: int = 1
) -> Iterator[Sequence[int]]:
    """Yield the tokens of one call of the engine after the other.

    Args:
        token_ids: At least `num_scored` ids.
        chunk_tokens: Most tokens of a call, at least `num_scored`.
        num_scored: Least tokens of the last call, at least 1.
    """
    start = 0
    while len(token_ids) - start > chunk_tokens:
        end = min(start + chunk_tokens, len(token_ids) - num_scored)
        yield token_ids[start:end]
        start = end
    yield token_ids[start:]
