"""Equal names mean equal contents: the same tokens after the same ones, computed the same way."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.batching.block_keys import KeyChain, cut_prompt, name_blocks, prompt_calls


def keys_of(*calls: Sequence[int], tells_calls: bool = True) -> list[bytes]:
    chain = KeyChain(4, tells_calls=tells_calls)
    return [key for call in calls for key in chain.feed(call)]


def test_the_first_difference_changes_all_names_from_there() -> None:
    first = keys_of([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12])
    second = keys_of([1, 2, 3, 4], [5, 6, 7, 0], [9, 10, 11, 12])
    assert first[0] == second[0]
    assert not set(first[1:]) & set(second[1:])


def test_a_token_alone_is_named_apart_from_one_among_others() -> None:
    together, alone = keys_of([1, 2, 3, 4]), keys_of([1, 2, 3], [4])
    assert together != alone
    assert keys_of([1, 2, 3], [4], tells_calls=False) == keys_of([1, 2, 3, 4], tells_calls=False)
    # The one token of a longer call that falls into a block is not alone.
    assert keys_of([1, 2, 3], [4, 5]) != alone


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 12)))
def test_names_do_not_depend_on_where_a_prompt_is_cut(
    prompt: list[int], budgets: list[int]
) -> None:
    calls: list[Sequence[int]] = []
    start = 0
    while start < len(prompt):
        budget = budgets[len(calls) % len(budgets)] if budgets else 0
        end = cut_prompt(start, len(prompt), block_tokens=4, budget=budget)
        assert start < end <= len(prompt)
        assert end % 4 == 0 or end == len(prompt)
        assert end - start <= max(budget, 4)
        # A last token beyond the whole blocks is computed alone, wherever it was cut.
        assert (end - start == 1) == (end == len(prompt) and len(prompt) % 4 == 1)
        calls.append(prompt[start:end])
        start = end
    assert keys_of(*calls) == keys_of(*prompt_calls(prompt, 4))


@pytest.mark.parametrize(
    ("later_calls", "is_call_end"),
    [
        ([[5], [6], [7]], [True, True]),
        ([[5, 6, 7]], [True, True]),
        ([[5, 6, 7, 8]], [True, False]),
        ([[5], [6], [7, 8, 9, 10, 11, 12]], [True, False, False]),
        ([[5], [6], [7, 8, 9, 10, 11]], [True, False, True]),
    ],
)
def test_feeding_goes_on_only_where_a_call_ended(
    later_calls: list[list[int]], is_call_end: list[bool]
) -> None:
    named = name_blocks([1, 2, 3, 4, 0], later_calls, 4, tells_calls=True)
    assert [flag for _, flag in named] == is_call_end


def test_a_copy_goes_on_alone() -> None:
    chain = KeyChain(4)
    chain.feed([1, 2])
    twin = chain.copy()
    assert chain.feed([3, 4]) == keys_of([1, 2], [3, 4])
    assert twin.feed([5, 6]) == keys_of([1, 2], [5, 6])
    assert twin.is_at_block_end
