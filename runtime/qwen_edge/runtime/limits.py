"""Refuses requests that cannot be or cannot fit, before anything is computed."""

from pathlib import Path

from qwen_edge.errors import ContextFullError, UsageError


def check_max_new_tokens(max_new_tokens: int | None) -> None:
    """Raise UsageError unless the limit is None or at least one."""
    if max_new_tokens is None:
        return
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        raise UsageError(
            f"max_new_tokens is {max_new_tokens!r}; expected a whole number.",
            "give a number of at least 1, or leave it out",
            field="max_new_tokens",
        )
    if max_new_tokens < 1:
        raise UsageError(
            f"max_new_tokens is {max_new_tokens:,}; expected at least 1.",
            "give a number of at least 1, or leave it out",
            field="max_new_tokens",
        )


def check_room(
    num_prompt_tokens: int,
    *,
    max_context_tokens: int,
    max_prompt_tokens: int | None,
    is_lower_bound: bool = False,
) -> None:
    """Raise ContextFullError when a prompt leaves no room for one more token.

    Args:
        num_prompt_tokens: Length of the rendered conversation.
        max_context_tokens: Most tokens of prompt and answer together.
        max_prompt_tokens: Most tokens of a prompt, where the device has such a limit.
        is_lower_bound: Whether the length was only estimated from below.
    """
    limit = max_context_tokens - 1
    what = f"holds {max_context_tokens:,} with the answer"
    if max_prompt_tokens is not None and max_prompt_tokens < limit:
        limit = max_prompt_tokens
        what = f"takes prompts of up to {max_prompt_tokens:,} on this device"
    if num_prompt_tokens <= limit:
        return
    at_least = "at least " if is_lower_bound else ""
    raise ContextFullError(
        f"The conversation needs {at_least}{num_prompt_tokens:,} tokens, but this package {what}.",
        f"start a new conversation, or shorten this one by {at_least}"
        f"{num_prompt_tokens - limit:,} tokens",
        prompt_tokens=num_prompt_tokens,
        max_prompt_tokens=limit,
        max_context_tokens=max_context_tokens,
    )


def check_num_answers(n: object) -> None:
    """Raise UsageError unless this is a number of answers: 1 or more."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"n is {n!r}; expected 1 or more answers.", "pass n=2", option="n")


def read_path(path: object, option: str = "path") -> Path:
    """Return a path given as one or as text; raise UsageError for anything else."""
    if not isinstance(path, str | Path):
        raise UsageError(
            f"{option} is {path!r}; expected a path.",
            f"pass {option} as text or Path",
            option=option,
        )
    return Path(path)
