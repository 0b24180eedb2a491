"""The token loop: ids, chunks, the law of the cache position, and cancellation."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.generation import generate_tokens
from qwen_edge.runtime.sampling import SamplingParams, make_sampler

GREEDY = make_sampler(SamplingParams(temperature=0.0))


def count_up(token_ids: Sequence[int]) -> int:
    """Say the number of ids so far, so that every position has its own token."""
    return len(token_ids)


@given(num_prompt=st.integers(1, 40), num_new=st.integers(0, 20), chunk_tokens=st.integers(1, 50))
def test_ids_do_not_depend_on_the_chunks_and_no_forward_is_wasted(
    num_prompt: int, num_new: int, chunk_tokens: int
) -> None:
    backend = FakeBackend(count_up)
    tokens = generate_tokens(
        backend,
        [7] * num_prompt,
        sample=GREEDY,
        max_new_tokens=num_new,
        prefill_chunk_tokens=chunk_tokens,
    )
    assert list(tokens) == list(range(num_prompt, num_prompt + num_new))
    num_chunks = -(-num_prompt // chunk_tokens)
    assert backend.num_forward_calls == num_chunks + max(0, num_new - 1)


def test_the_cache_is_one_token_behind_at_every_yield() -> None:
    backend = FakeBackend(count_up)
    tokens = generate_tokens(backend, [1, 2, 3], sample=GREEDY, max_new_tokens=5)
    for num_yields, _ in enumerate(tokens, start=1):
        assert backend.cached_tokens == 3 + num_yields - 1
    assert backend.cached_ids == [1, 2, 3, 3, 4, 5, 6]


def test_closing_leaves_the_cache_where_it_was() -> None:
    backend = FakeBackend(count_up)
    tokens = generate_tokens(backend, [1, 2], sample=GREEDY, max_new_tokens=100)
    assert list(islice(tokens, 3)) == [2, 3, 4]
    assert backend.cached_ids == [1, 2, 2, 3]


@pytest.mark.parametrize("num_checks", [0, 1, 2, 3, 4])
def test_cancelling_is_seen_before_every_forward(num_checks: int) -> None:
    backend = FakeBackend(count_up)
    answers = iter([False] * num_checks + [True] * 99)
    tokens = generate_tokens(
        backend,
        [1] * 4,
        sample=GREEDY,
        max_new_tokens=9,
        prefill_chunk_tokens=2,
        is_cancelled=lambda: next(answers),
    )
    assert len(list(tokens)) <= max(0, num_checks - 2)
    assert backend.num_forward_calls == min(num_checks, 2) + max(0, num_checks - 3)


def test_an_endless_model_stops_at_the_limit() -> None:
    tokens = generate_tokens(FakeBackend([5]), [1], sample=GREEDY, max_new_tokens=12)
    assert list(tokens) == [5] * 12


def test_a_device_error_passes_through() -> None:
    backend = FakeBackend([5], fail_at_call=3)
    tokens = generate_tokens(backend, [1], sample=GREEDY, max_new_tokens=12)
    assert [next(tokens), next(tokens)] == [5, 5]
    with pytest.raises(DeviceError):
        next(tokens)


def test_logits_reach_the_sampler_unchanged() -> None:
    seen: list[np.ndarray] = []

    def sample(logits: np.ndarray) -> int:
        seen.append(logits)
        return 3

    backend = FakeBackend([5], vocab_size=8)
    assert list(generate_tokens(backend, [1], sample=sample, max_new_tokens=1)) == [3]
    assert (seen[0].dtype, seen[0].shape) == (np.float32, (8,))


@pytest.mark.parametrize(("prompt_ids", "chunk_tokens"), [([], 1), ([1], 0)])
def test_nothing_to_feed_is_refused(prompt_ids: list[int], chunk_tokens: int) -> None:
    tokens = generate_tokens(
        FakeBackend([5]),
        prompt_ids,
        sample=GREEDY,
        max_new_tokens=1,
        prefill_chunk_tokens=chunk_tokens,
    )
    with pytest.raises(ValueError, match="pass at least"):
        next(tokens)
