"""What every backend checks before it touches its cache, and how it says no."""

from collections.abc import Sequence

from qwen_edge.errors import ContextFullError, UsageError


def check_token_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse an empty list and ids outside the vocabulary.

    Raises:
        ValueError: Naming the first id outside, its index and the range.
    """
    if len(token_ids) == 0:
        raise ValueError("token_ids is empty; pass at least one token")
    if min(token_ids) >= 0 and max(token_ids) < vocab_size:
        return
    index, token_id = next(
        (index, token_id)
        for index, token_id in enumerate(token_ids)
        if not 0 <= token_id < vocab_size
    )
    raise ValueError(
        f"token_ids[{index}] is {token_id}; expected an id from 0 to {vocab_size - 1:,}"
    )


def check_room(cached_tokens: int, num_new: int, max_context_tokens: int) -> None:
    """Refuse tokens for which the context has no room.

    Raises:
        ContextFullError: With the tokens needed and the limit.
    """
    needed = cached_tokens + num_new
    if needed > max_context_tokens:
        raise ContextFullError(
            f"The conversation needs {needed:,} tokens, but the context holds "
            f"{max_context_tokens:,}.",
            f"start a new conversation, or shorten it by {needed - max_context_tokens:,} tokens.",
            needed_tokens=needed,
            max_context_tokens=max_context_tokens,
        )


def check_trim(num_tokens: int, cached_tokens: int) -> None:
    """Refuse to forget a negative number of tokens, or more than there are.

    Raises:
        ValueError: Naming both numbers.
    """
    if not 0 <= num_tokens <= cached_tokens:
        raise ValueError(
            f"num_tokens is {num_tokens}; expected 0 to {cached_tokens:,}, the cached tokens"
        )


def closed_error() -> UsageError:
    """Return the error for a backend that is used after `close`."""
    return UsageError("The model is closed.", "load it again with `load(path)`.")
