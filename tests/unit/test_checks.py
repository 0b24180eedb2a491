"""What backends refuse before they touch their cache."""

import pytest

from qwen_edge.errors import ContextFullError
from qwen_edge.runtime.backends.checks import check_room, check_token_ids, check_trim


def test_ids_within_the_vocabulary_pass() -> None:
    check_token_ids([0, 9], 10)


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([], "token_ids is empty"),
        ([1, 10], r"token_ids\[1\] is 10; expected an id from 0 to 9"),
        ([-1], r"token_ids\[0\] is -1"),
    ],
    ids=["empty", "above", "below"],
)
def test_other_ids_are_named(token_ids: list[int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check_token_ids(token_ids, 10)


def test_full_context_names_both_numbers_and_the_difference() -> None:
    check_room(4, 6, 10)
    with pytest.raises(ContextFullError) as caught:
        check_room(2_000, 48, 1_024)
    assert "needs 2,048 tokens, but the context holds 1,024" in caught.value.problem
    assert "shorten it by 1,024 tokens" in caught.value.fix
    assert caught.value.facts == {"needed_tokens": 2_048, "max_context_tokens": 1_024}


@pytest.mark.parametrize("num_tokens", [-1, 4])
def test_trim_beyond_the_cache_is_refused(num_tokens: int) -> None:
    check_trim(0, 3)
    check_trim(3, 3)
    with pytest.raises(ValueError, match="expected 0 to 3, the cached tokens"):
        check_trim(num_tokens, 3)
