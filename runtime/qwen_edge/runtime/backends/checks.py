"""What every backend checks before it touches its cache and after, and how it says no."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from qwen_edge.errors import ContextFullError, ParityError, UsageError
from qwen_edge.runtime.backends.backend import CacheSnapshot, Logits


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


def check_num_scored(num_scored: int, num_tokens: int, max_scored_tokens: int) -> None:
    """Refuse to give logits after no token, after more than there are, or than are made.

    Raises:
        ValueError: Naming the number and the limits.
    """
    limit = min(num_tokens, max_scored_tokens)
    if not 1 <= num_scored <= limit:
        raise ValueError(
            f"num_scored is {num_scored}; expected 1 to {limit}, of {num_tokens} tokens with "
            f"logits after at most {max_scored_tokens}"
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


def check_finite(logits: Logits, device: str) -> None:
    """Refuse logits among which is NaN or infinity: no token can be chosen by them.

    Args:
        logits: float32 [vocab_size].
        device: For messages.

    Raises:
        ParityError: With their number.
    """
    # The sum is finite when all are, and costs a quarter of asking each. Only where it is
    # not is each asked, since a sum of finite numbers can overflow too.
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(logits.sum())
    if not math.isfinite(total) and not np.isfinite(logits).all():
        num_bad = int(np.count_nonzero(~np.isfinite(logits)))
        raise ParityError(
            f"The model gave {num_bad:,} of {logits.size:,} logits that are no finite "
            f"numbers on device {device!r}.",
            "check the package with `qwen-edge verify`; if it is intact, use "
            "--device CPU, or export it again.",
            num_non_finite=num_bad,
            device=device,
        )


def check_snapshot(
    snapshot: CacheSnapshot, kind: str, *, vocab_size: int, max_context_tokens: int
) -> None:
    """Refuse a snapshot that another kind of backend took, of another model, or too long.

    Raises:
        UsageError: Naming what it is and what was expected.
        ContextFullError: With the tokens needed and the limit.
    """
    found, expected = (snapshot.kind, snapshot.vocab_size), (kind, vocab_size)
    if found != expected:
        raise unfit_snapshot(
            f"it is of kind {found[0]!r} with {found[1]:,} logits, expected {expected[0]!r} with "
            f"{expected[1]:,}"
        )
    check_room(0, len(snapshot.token_ids), max_context_tokens)


def find_other_setting(found: Mapping[str, str], expected: Mapping[str, str]) -> str | None:
    """Return the first of the settings that differs, as a clause for `unfit_snapshot`, or None."""
    for name in (*expected, *found):
        if found.get(name) != expected.get(name):
            there, here = (each.get(name, "not set") for each in (found, expected))
            return f"it was made with {name} {there}, and here that is {here}"
    return None


def unfit_snapshot(problem: str) -> UsageError:
    """Return the error for a snapshot that is not this model's."""
    return UsageError(
        f"The snapshot does not fit this model: {problem}.",
        "restore it where it was taken, or feed its `token_ids` again.",
    )


def closed_error() -> UsageError:
    """Return the error for a backend that is used after `close`."""
    return UsageError("The model is closed.", "load it again with `load(path)`.")
