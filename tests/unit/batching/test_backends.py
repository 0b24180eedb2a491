"""Batch backends used directly: forks, refusals, turns."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import ResourceError
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.batching.batch_backend import Feed
from qwen_edge.runtime.batching.fake_paged import FakePagedEngine
from qwen_edge.runtime.batching.paged import PagedBatchBackend
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend

VOCAB_SIZE = 100


def add_up(token_ids: Sequence[int]) -> int:
    return sum(token_ids) % VOCAB_SIZE


def make_paged(num_blocks: int = 20) -> PagedBatchBackend:
    engine = FakePagedEngine(add_up, vocab_size=VOCAB_SIZE)
    return PagedBatchBackend(engine, max_context_tokens=1_000, cache_bytes=num_blocks + 1)


def make_turns(num_blocks: int = 20) -> SequentialBatchBackend:
    single = FakeBackend(add_up, vocab_size=VOCAB_SIZE)
    return SequentialBatchBackend(
        single, max_sequences=9, max_cached_tokens=4 * num_blocks, block_tokens=4
    )


@pytest.fixture(params=[make_paged, make_turns], ids=["paged", "sequential"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return makers of each kind of backend, with so many blocks of 4 tokens."""
    maker: Callable[..., Any] = request.param
    return maker


def feed(backend: Any, *pairs: tuple[int, Sequence[int]]) -> list[int]:
    """Feed sequences in one step; return the likeliest token after each."""
    for sequence_id, token_ids in pairs:
        assert backend.reserve(sequence_id, len(token_ids))
    rows = backend.step([Feed(sequence_id, ids, True) for sequence_id, ids in pairs])
    return [int(row.argmax()) for row in rows]


def begin(backend: Any, prompt_ids: Sequence[int]) -> int:
    sequence_id: int = backend.begin(prompt_ids, max_reused=0)
    return sequence_id


@pytest.mark.parametrize("length", [1, 3, 4, 6, 8])
def test_a_fork_goes_on_alone(make: Callable[..., Any], length: int) -> None:
    backend = make()
    parent = begin(backend, [1] * length)
    feed(backend, (parent, [1] * length))
    twin = backend.fork(parent)
    assert backend.cached_tokens(twin) == length
    assert feed(backend, (parent, [10]), (twin, [20])) == [length + 10, length + 20]
    assert feed(backend, (twin, [30]), (parent, [40])) == [length + 50, length + 50]
    backend.free(parent)
    assert feed(backend, (twin, [2])) == [length + 52]
    backend.free(twin)
    assert backend.num_blocks_available == 20


def test_a_fork_without_memory_is_refused_and_changes_nothing(make: Callable[..., Any]) -> None:
    backend = make(2)
    parent = begin(backend, [1] * 6)
    feed(backend, (parent, [1] * 6))
    with pytest.raises(ResourceError):
        backend.fork(parent)
    assert feed(backend, (parent, [3])) == [9]
    backend.free(parent)
    assert backend.num_blocks_available == 2


def test_memory_is_taken_by_reserve_alone(make: Callable[..., Any]) -> None:
    backend = make(3)
    sequence = begin(backend, [1])
    assert backend.num_blocks_available == 3
    assert not backend.reserve(sequence, 13)
    assert backend.num_blocks_available == 3
    assert backend.reserve(sequence, 5)
    assert backend.num_blocks_available == 1
    backend.free(sequence)
    assert backend.num_blocks_available == 3


def test_what_is_not_scored_gives_no_row(make: Callable[..., Any]) -> None:
    backend = make()
    first, second = begin(backend, [1, 2]), begin(backend, [3])
    for sequence in (first, second):
        assert backend.reserve(sequence, 2)
    rows = backend.step([Feed(first, [1, 2], False), Feed(second, [3], True)])
    assert (rows.shape, int(rows[0].argmax())) == ((1, VOCAB_SIZE), 3)
    assert backend.step([Feed(first, [5], False)]).shape == (0, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("later_calls", "num_reused"),
    [([[1], [1], [1]], 8), ([[1, 1, 1]], 8), ([[1], [1, 1, 1]], 4), ([[1], [1], [1, 1, 9]], 4)],
)
def test_a_sequence_goes_on_where_a_call_ended(
    later_calls: list[list[int]], num_reused: int
) -> None:
    """Prompts of five, so that calls begin in the middle of the second block of four."""
    backend = make_paged()
    first = begin(backend, [1] * 5)
    feed(backend, (first, [1] * 4))
    feed(backend, (first, [1]))
    for call in later_calls:
        feed(backend, (first, call))
    backend.free(first)
    again = backend.begin([1] * 5, later_calls, max_reused=100)
    assert backend.cached_tokens(again) == num_reused


def test_reset_forgets_all(make: Callable[..., Any]) -> None:
    backend = make()
    feed(backend, (begin(backend, [1] * 9), [1] * 9))
    backend.reset()
    assert (backend.num_blocks_available, backend.num_blocks_cached) == (20, 0)
    again = backend.begin([1] * 9, max_reused=8)
    assert backend.cached_tokens(again) == 0
    assert feed(backend, (again, [1] * 9)) == [9]


def test_a_short_sequence_runs_along_where_the_kernel_would_change() -> None:
    backend = make_paged()
    engine = backend._engine
    first, second = begin(backend, [1, 2]), begin(backend, [3])
    lengths = []
    for pairs in (
        [(first, [1, 2])],
        [(first, [5])],
        [(first, [5]), (second, [3])],
        [(second, [4])],
    ):
        feed(backend, *pairs)
        lengths.append(np.diff(engine.calls[-1].subsequence_begins).tolist())
    assert lengths == [[2], [1, 2], [1, 1], [1, 2]]


def test_a_cache_of_nothing_is_refused() -> None:
    with pytest.raises(ResourceError, match="holds 1 blocks"):
        make_paged(0)


def test_turns_are_taken_without_computing_again() -> None:
    single = FakeBackend(add_up, vocab_size=VOCAB_SIZE)
    backend = SequentialBatchBackend(single, max_sequences=2)
    first, second = begin(backend, [1]), begin(backend, [2])
    assert feed(backend, (first, [1, 1]), (second, [2])) == [2, 2]
    assert feed(backend, (first, [5]), (second, [6])) == [7, 8]
    assert single.num_forward_tokens == 5


def test_what_the_last_sequence_left_serves_the_next() -> None:
    single = FakeBackend(add_up, vocab_size=VOCAB_SIZE)
    backend = SequentialBatchBackend(single, block_tokens=4)
    first = begin(backend, [1] * 10)
    feed(backend, (first, [1] * 10))
    backend.free(first)
    second = backend.begin([1] * 9 + [5], max_reused=9)
    assert (backend.cached_tokens(second), single.cached_ids) == (8, [1] * 8)
    assert feed(backend, (second, [1, 5])) == [14]
    third = backend.begin([1] * 9, max_reused=8)  # the second one has the backend
    assert backend.cached_tokens(third) == 0
    assert feed(backend, (third, [1] * 9), (second, [1])) == [9, 15]
