"""Penalties: each does what its definition says, whatever came before and in whatever pieces."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import UsageError
from qwen_edge.runtime.decoding.logit_processors import LogitChanges, RepeatFinder, TokenCounts
from qwen_edge.runtime.decoding.sampling import SamplingParams

TOKENS = st.lists(st.integers(0, 4), max_size=40)
LOGITS = np.array([-2.0, -0.5, 0.0, 1.5, 3.0, -np.inf], np.float32)


def change(prompt: Sequence[int], answer: Sequence[int], **settings: Any) -> list[float]:
    """Return the changed scores of `LOGITS`."""
    changes = LogitChanges(SamplingParams(**settings), prompt)
    for token_id in answer:
        changes.record(token_id)
    scores: list[float] = changes.apply(LOGITS, None).tolist()
    return scores


@given(prompt=TOKENS, answer=TOKENS)
def test_each_penalty_counts_its_own_tokens(prompt: list[int], answer: list[int]) -> None:
    seen, counts = set(prompt + answer), Counter(answer)
    rows = list(enumerate(LOGITS.tolist()))
    assert change(prompt, answer, repetition_penalty=2.0) == [
        (score * 2 if score < 0 else score / 2) if index in seen else score for index, score in rows
    ]
    assert change(prompt, answer, presence_penalty=0.5) == [
        score - 0.5 * (index in counts) for index, score in rows
    ]
    assert change(prompt, answer, frequency_penalty=-0.25) == [
        score + 0.25 * counts[index] for index, score in rows
    ]


def test_penalties_come_after_the_bias_and_one_after_the_other() -> None:
    """As in Transformers (bias, repetition) and vLLM (repetition, then the other two)."""
    scores = change(
        [4],
        [3],
        logit_bias={3: 2.5, 4: -4.0, 5: 9.0},
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        dry_multiplier=1.0,
        dry_sequence_breakers=(),
    )
    assert scores == [-2.0, -0.5, 0.0, (1.5 + 2.5) / 2 - 0.75, (3.0 - 4.0) * 2, -np.inf]


def test_nothing_to_change_costs_no_copy() -> None:
    changes = LogitChanges(SamplingParams(), [1, 2])
    assert changes.apply(LOGITS, None) is LOGITS


def find_plainly(
    ids: Sequence[int], breakers: set[int], max_tokens: int, least_tokens: int
) -> dict[int, int]:
    """Return what DRY's definition says, comparing the end with every earlier place."""
    ids = ids[-max_tokens:] if max_tokens else ids
    longest: dict[int, int] = {}
    for place in range(len(ids) - 1):
        length = 0
        while (
            length < min(place + 1, 50)
            and ids[place - length] == ids[-1 - length]
            and ids[-1 - length] not in breakers
        ):
            length += 1
        next_id = ids[place + 1]
        if length >= least_tokens and next_id not in breakers:
            longest[next_id] = max(length, longest.get(next_id, 0))
    return longest


@given(
    prompt=TOKENS,
    answer=TOKENS,
    breakers=st.sets(st.integers(0, 4), max_size=2),
    max_tokens=st.integers(0, 30),
    least_tokens=st.integers(1, 4),
)
def test_repetitions_are_found_as_defined(
    prompt: list[int],
    answer: list[int],
    breakers: set[int],
    max_tokens: int,
    least_tokens: int,
) -> None:
    finder = RepeatFinder(prompt, breakers, max_tokens)
    for token_id in answer:
        finder.add(token_id)
    expected = find_plainly(prompt + answer, breakers, max_tokens, least_tokens)
    assert finder.find(least_tokens) == expected


@pytest.mark.parametrize("num_in_prompt", [0, 60, 149, 150])
def test_long_repetitions_are_found_wherever_the_prompt_ends(num_in_prompt: int) -> None:
    ids = [*range(70), 99, *range(70), *([5] * 9)]
    finder = RepeatFinder(ids[:num_in_prompt], (), 0)
    for place, token_id in enumerate(ids[num_in_prompt:], start=num_in_prompt + 1):
        finder.add(token_id)
        assert finder.find(2) == find_plainly(ids[:place], set(), 0, 2)
    finder = RepeatFinder([*range(70), 99, *range(70)], (), 0)
    assert finder.find(2) == {99: 50}


def test_the_dry_penalty_grows_with_the_repetition() -> None:
    settings: dict[str, Any] = {"dry_multiplier": 0.5, "dry_base": 2.0, "dry_sequence_breakers": ()}

    def loss(repeated: Sequence[int], **more: Any) -> float:
        return 1.5 - change([*repeated, 3, 4], repeated, **{**settings, **more})[3]

    assert [loss([2, 1, 0][:n]) for n in (1, 2, 3)] == [0.0, 0.5, 1.0]
    assert loss([2, 1, 0], dry_allowed_length=3) == 0.5
    assert loss([2, 1, 0], dry_range=7) == 0.5  # the first 2 is out of reach
    assert 1e29 < loss([0, 1] * 40, dry_base=10.0) < np.inf


def test_sequence_breakers_have_to_be_ids_where_dry_is_on() -> None:
    LogitChanges(SamplingParams(), ())
    with pytest.raises(UsageError, match=r"holds the text '\\n'.*\n.*fit_to_model"):
        LogitChanges(SamplingParams(dry_multiplier=0.8), ())


@given(start=TOKENS, more=st.lists(st.integers(0, 200), max_size=100))
def test_counts_grow_and_copies_stay_apart(start: list[int], more: list[int]) -> None:
    counts = TokenCounts(start)
    before = counts.copy()
    for token_id in more:
        counts.add(token_id)
    found = zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)
    assert dict(found) == Counter(start + more)
    assert dict(zip(before.ids.tolist(), before.counts.tolist(), strict=True)) == Counter(start)
