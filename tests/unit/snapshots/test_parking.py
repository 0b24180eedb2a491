"""Conversations put aside: what is found, what is dropped, and how a copy is cut."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.parking import Parking, count_common, cut_snapshot

IDS = st.lists(st.integers(0, 2), max_size=8)


def make(*token_ids: int, num_bytes: int = 10) -> CacheSnapshot:
    return CacheSnapshot("x", 64, token_ids, (np.zeros(num_bytes, np.uint8),))


@given(first=IDS, second=IDS)
def test_count_common(first: list[int], second: list[int]) -> None:
    number = count_common(first, second)
    assert first[:number] == second[:number]
    assert number == min(len(first), len(second)) or first[number] != second[number]


def test_the_longest_common_beginning_is_found() -> None:
    parking = Parking(1000)
    parking.park(make(1, 2, 3))
    parking.park(make(1, 2, 4, 5))
    assert parking.find([9]) == (None, 0)
    found, number = parking.find([1, 2, 4, 9])
    assert found is not None
    assert (found.token_ids, number) == ((1, 2, 4, 5), 3)
    assert parking.holds([1, 2, 4])
    assert not parking.holds([1, 2, 4, 9])


def test_longer_copy_of_the_same_makes_the_shorter_one_superfluous() -> None:
    parking = Parking(1000)
    parking.park(make(1, 2))
    parking.park(make(1, 2, 3))
    assert parking.num_bytes == 10


def test_the_copy_used_longest_ago_goes_first() -> None:
    parking = Parking(25)
    parking.park(make(1))
    parking.park(make(2))
    one, _ = parking.find([1])
    assert one is not None
    assert parking.use(one).token_ids == (1,)
    parking.park(make(3))
    assert [parking.holds([number]) for number in (1, 2, 3)] == [True, False, True]
    assert parking.num_bytes == 20


def test_copy_larger_than_all_room_is_not_kept() -> None:
    parking = Parking(25)
    parking.park(make(1))
    assert parking.has_room(2)
    parking.park(make(2, 2, num_bytes=60))
    assert [parking.holds([number]) for number in (1, 2)] == [True, False]
    assert not parking.has_room(1)


def test_pinned_copy_takes_no_room_and_stays() -> None:
    parking = Parking(15)
    parking.pin([7, 8], lambda: make(7, 8, num_bytes=1000))
    parking.park(make(1))
    parking.park(make(2))
    found, number = parking.find([7, 8, 9])
    assert found is not None
    assert number == 2
    assert parking.use(found).token_ids == (7, 8)
    parking.drop(found)
    assert parking.find([7, 8, 9]) == (None, 0)
    parking.clear()
    assert parking.num_bytes == 0


ROWS = np.arange(1 * 2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("number", "mask"), [(1, [0, 1]), (2, [0, 1, 0, 0, 1]), (3, [0, 1, 0, 0, 1, 1, 0])]
)
def test_cut_copy_is_that_of_fewer_tokens(number: int, mask: list[int]) -> None:
    """Holes before the last token stay, and those after it go with what made them."""
    arrays: tuple[npt.NDArray[Any], ...] = (np.array([0, 1, 0, 0, 1, 1, 0], np.uint8), ROWS)
    whole = CacheSnapshot("x", 64, (5, 6, 7), arrays, {"a": "b"})
    cut = cut_snapshot(whole, number)
    assert cut.token_ids == (5, 6, 7)[:number]
    assert cut.arrays[0].tolist() == mask
    assert np.array_equal(cut.arrays[1], ROWS[:, :, :number])
    assert cut.settings == {"a": "b"}


def test_copy_cut_to_nothing() -> None:
    assert cut_snapshot(make(1, 2), 0).arrays == ()
