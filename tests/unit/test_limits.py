"""Limits: both numbers are told, and the smaller limit counts."""

from typing import Any

import pytest

from qwen_edge.errors import ContextFullError, UsageError
from qwen_edge.runtime.limits import check_max_new_tokens, check_room


@pytest.mark.parametrize("num_tokens", [1, 98, 99])
def test_a_prompt_that_leaves_room_for_one_token_passes(num_tokens: int) -> None:
    check_room(num_tokens, max_context_tokens=100, max_prompt_tokens=None)


@pytest.mark.parametrize("num_tokens", [100, 101, 10_000])
def test_both_numbers_are_told(num_tokens: int) -> None:
    with pytest.raises(ContextFullError, match=f"needs {num_tokens:,} tokens.*100") as caught:
        check_room(num_tokens, max_context_tokens=100, max_prompt_tokens=None)
    assert f"by {num_tokens - 99:,} tokens" in caught.value.fix
    assert caught.value.facts["prompt_tokens"] == num_tokens


def test_the_prompt_limit_of_a_device_counts_when_it_is_smaller() -> None:
    with pytest.raises(ContextFullError, match="up to 50 on this device"):
        check_room(51, max_context_tokens=100, max_prompt_tokens=50)
    check_room(99, max_context_tokens=100, max_prompt_tokens=5000)


def test_an_estimate_says_so() -> None:
    with pytest.raises(ContextFullError, match="at least 101"):
        check_room(101, max_context_tokens=100, max_prompt_tokens=None, is_lower_bound=True)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "9"])
def test_a_limit_of_new_tokens_must_be_a_count(value: Any) -> None:
    with pytest.raises(UsageError, match="max_new_tokens"):
        check_max_new_tokens(value)
