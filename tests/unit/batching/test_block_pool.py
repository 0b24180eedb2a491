"""Blocks are held, cached, free or unused: never two of these, and none is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.runtime.batching.block_pool import BlockPool


def test_the_longest_unused_goes_first() -> None:
    pool = BlockPool(2)
    first, second = pool.take(), pool.take()
    pool.name(first, b"1")
    pool.name(second, b"2")
    pool.release(first)
    pool.release(second)
    pool.hold(first)
    pool.release(first)
    assert pool.take() == second
    assert (pool.find(b"1"), pool.find(b"2")) == (first, None)


def test_memory_is_touched_last_of_all_but_what_is_cached() -> None:
    pool = BlockPool(3)
    pool.release(pool.take())
    assert [pool.take(), pool.num_touched] == [0, 1]
    pool.name(0, b"0")
    pool.release(0)
    assert [pool.take(), pool.take(), pool.take()] == [1, 2, 0]
    assert pool.find(b"0") is None


def test_a_named_or_shared_block_is_not_to_be_written() -> None:
    pool = BlockPool(3)
    block = pool.take()
    assert not pool.is_shared(block)
    pool.hold(block)
    assert pool.is_shared(block)
    pool.release(block)
    assert not pool.is_shared(block)
    pool.name(block, b"x")
    assert pool.is_shared(block)


def test_a_name_stays_with_its_first_block() -> None:
    pool = BlockPool(3)
    first, second = pool.take(), pool.take()
    pool.name(first, b"x")
    pool.name(second, b"x")
    pool.release(second)
    assert (pool.find(b"x"), pool.num_cached, pool.num_available) == (first, 0, 2)


def test_names_can_be_forgotten() -> None:
    pool = BlockPool(2)
    held, cached = pool.take(), pool.take()
    pool.name(held, b"h")
    pool.name(cached, b"c")
    pool.release(cached)
    pool.forget_names()
    assert (pool.find(b"h"), pool.find(b"c"), pool.num_cached) == (None, None, 0)
    pool.release(held)
    assert pool.num_available == 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "hold", "name", "release", "forget"]), st.integers(0, 9)
        ),
        max_size=60,
    )
)
def test_law_no_block_is_lost_or_held_twice_over(steps: list[tuple[str, int]]) -> None:
    pool = BlockPool(6)
    holders: list[int] = []  # one entry per holder
    for action, number in steps:
        if action == "take" and pool.num_available:
            block = pool.take()
            assert block not in holders
            assert not pool.is_shared(block)
            holders.append(block)
        elif action == "forget":
            pool.forget_names()
        elif holders:
            block = holders[number % len(holders)]
            if action == "hold":
                pool.hold(block)
                holders.append(block)
            elif action == "name" and not pool.is_shared(block):
                pool.name(block, bytes([number]))
            elif action == "release":
                holders.remove(block)
                pool.release(block)
        found = pool.find(bytes([number]))
        if found is not None and action == "hold":
            pool.hold(found)
            holders.append(found)
        assert pool.num_held == len(set(holders))
        assert pool.num_available + pool.num_held == 6
        assert pool.num_touched <= 6


@pytest.mark.parametrize("num_blocks", [1, 5])
def test_all_blocks_can_be_had(num_blocks: int) -> None:
    pool = BlockPool(num_blocks)
    assert sorted(pool.take() for _ in range(num_blocks)) == list(range(num_blocks))
    assert pool.num_available == 0
