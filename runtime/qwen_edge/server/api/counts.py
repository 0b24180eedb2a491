"""Counts and speeds of an answer, as OpenAI's and llama.cpp's clients read them."""

from collections.abc import Sequence

from qwen_edge.runtime.events import Timings


def make_usage(timings: Sequence[Timings]) -> dict[str, object]:
    """Return `usage` of the answers to one prompt, which is counted once.

    Args:
        timings: Of each answer, at least one.
    """
    prompt = timings[0].prompt_tokens
    completion = sum(one.decode_tokens for one in timings)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": timings[0].reused_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": sum(one.reasoning_tokens for one in timings)
        },
    }


def make_timings(timings: Timings) -> dict[str, float | int | None]:
    """Return `timings` of one answer, in llama.cpp's names; waiting in the line counts."""
    first_s = timings.ttft_s
    return {
        "cache_n": timings.reused_tokens,
        "prompt_n": timings.prefill_tokens,
        "prompt_ms": None if first_s is None else round(first_s * 1000, 3),
        "prompt_per_second": timings.prefill_tokens_per_s,
        "predicted_n": timings.decode_tokens,
        "predicted_ms": None if first_s is None else round((timings.total_s - first_s) * 1000, 3),
        "predicted_per_second": timings.decode_tokens_per_s,
    }
