"""Drafts from the sequence: what the best match is, its continuation, and what it costs."""

import time
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.decoding.prompt_lookup import (
    MAX_MATCH_TOKENS,
    MIN_MATCH_TOKENS,
    PromptLookup,
)


def look(token_ids: Sequence[int], max_tokens: int = 4) -> tuple[int, list[int]]:
    lookup = PromptLookup()
    lookup.begin(token_ids)
    return lookup.evidence(), list(lookup.propose(max_tokens))


def find_longest(token_ids: Sequence[int]) -> tuple[int, int | None]:
    """Say the same by trying all places: length of the match, and where it goes on."""
    best, where = MIN_MATCH_TOKENS - 1, None
    for place in range(len(token_ids) - 1, 0, -1):
        length = 0
        while (
            length < min(place, MAX_MATCH_TOKENS)
            and token_ids[place - 1 - length] == token_ids[-1 - length]
        ):
            length += 1
        if length > best:
            best, where = length, place
    return (best, where) if where is not None else find_single(token_ids)


def find_single(token_ids: Sequence[int]) -> tuple[int, int | None]:
    """Say where the last token stood before, unless the last two places go on differently."""
    places = [
        place
        for place in range(len(token_ids) - 1, 0, -1)
        if len(token_ids) > 2 and token_ids[place - 1] == token_ids[-1]
    ]
    if not places or len({token_ids[place] for place in places[:2]}) > 1:
        return 0, None
    return 1, places[0]


@pytest.mark.parametrize(
    ("token_ids", "evidence", "guesses"),
    [
        ([], 0, []),
        ([1, 2, 3], 0, []),
        ([1, 2, 9, 1, 2], 2, [9, 1, 2, 9]),
        ([9, 2, 5, 6, 1, 2], 1, [5, 6, 1, 2]),
        ([9, 2, 5, 6, 2, 5, 3, 2], 1, [5, 3, 2, 5]),
        ([9, 2, 5, 6, 2, 7, 3, 2], 0, []),
        ([0, 1, 2, 5, 4, 1, 2, 6, 0, 1, 2], 3, [5, 4, 1, 2]),
        ([1, 2, 5, 1, 2, 6, 1, 2], 2, [6, 1, 2, 6]),
        ([7, 7, 7], 2, [7, 7, 7, 7]),
        ([1, 2, 3, 1, 2, 3, 1, 2], 5, [3, 1, 2, 3]),
    ],
    ids=[
        "empty",
        "new",
        "once",
        "one token",
        "one token, alike",
        "one token, torn",
        "longest",
        "most recent",
        "overlap",
        "periodic",
    ],
)
def test_longest_and_of_equals_most_recent(
    token_ids: list[int], evidence: int, guesses: list[int]
) -> None:
    assert look(token_ids) == (evidence, guesses)


def test_repetition_is_continued_beyond_the_end() -> None:
    assert look([1, 2, 3, 1, 2, 3, 1, 2], 7)[1] == [3, 1, 2, 3, 1, 2, 3]
    assert look([8, 9] * 40, 3) == (MAX_MATCH_TOKENS, [8, 9, 8])


@given(st.lists(st.integers(0, 3), max_size=60))
def test_search_finds_what_trying_all_places_finds(token_ids: list[int]) -> None:
    evidence, guesses = look(token_ids, 1)
    length, where = find_longest(token_ids)
    assert evidence == length
    assert guesses == ([] if where is None else [token_ids[where]])


@given(
    prompt=st.lists(st.integers(0, 3), max_size=30),
    pieces=st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=12),
)
def test_following_finds_a_match_as_true_as_a_search(
    prompt: list[int], pieces: list[list[int]]
) -> None:
    """What is followed may be shorter than the longest, but agrees, and never is nothing."""
    lookup = PromptLookup()
    lookup.begin(prompt)
    sequence = list(prompt)
    for piece in pieces:
        lookup.extend(piece)
        sequence += piece
        length, _ = find_longest(sequence)
        evidence = lookup.evidence()
        assert evidence <= length
        assert (evidence > 0) == (length > 0)
        assert (evidence >= MIN_MATCH_TOKENS) == (length >= MIN_MATCH_TOKENS)
        if evidence:
            [guess] = lookup.propose(1)
            agreeing = [*sequence[-evidence:], guess]
            places = range(len(sequence) - evidence)
            assert any(sequence[place : place + evidence + 1] == agreeing for place in places)


@given(
    first=st.lists(st.integers(0, 2), max_size=20), second=st.lists(st.integers(0, 2), max_size=20)
)
def test_beginning_again_is_as_beginning_anew(first: list[int], second: list[int]) -> None:
    """Whether the next prompt continues the last sequence or not."""
    lookup = PromptLookup()
    for prompt in (first, second, [*second, *first], second):
        lookup.begin(prompt)
        assert (lookup.evidence(), list(lookup.propose(5))) == look(prompt, 5)
        lookup.close()


def test_long_sequence_costs_little() -> None:
    """A pair that is everywhere, each time with another continuation: the worst case."""
    prompt = [token for index in range(10_922) for token in (1, 2, 3 + index)]
    tracemalloc.start()
    lookup = PromptLookup()
    lookup.begin(prompt)
    memory_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory_bytes < 300 * len(prompt)
    started_s = time.perf_counter()
    for index in range(500):
        lookup.extend([1, 2, 50_000 + index])
        lookup.propose(15)
    # 20 us each; the bound leaves room for a busy machine, and none for reading all there is.
    assert time.perf_counter() - started_s < 500 * 0.001
