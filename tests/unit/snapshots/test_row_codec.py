"""Packing the rows of a cache: the engine's own arithmetic must arrive at what it had."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.runtime.backends.row_codec import pack_rows, unpack_rows

Array = npt.NDArray[Any]
F32 = np.float32


def quantise(groups: Array) -> tuple[Array, Array, Array]:
    """Do as the engine does: numbers, scale and zero point of groups [n, size]."""
    low, high = groups.min(axis=1), groups.max(axis=1)
    scale = (high - low) / F32(255)
    scale[scale == 0] = F32(0.0001)
    zero = -low / scale
    # A multiplication and an addition with one rounding, as its instruction has.
    exact = groups.astype(np.float64) * (F32(1) / scale)[:, None] + zero[:, None]
    return np.clip(np.rint(exact.astype(F32)), 0, 255).astype(np.uint8), scale, zero


def dequantise(numbers: Array, scale: Array, zero: Array) -> Array:
    values: Array = (numbers.astype(F32) - zero[:, None]) * scale[:, None]
    return values


KINDS = {
    "plain": lambda rng, shape: rng.standard_normal(shape),
    "of-many-sizes": lambda rng, shape: (
        rng.standard_normal(shape) * np.exp(4 * rng.standard_normal((shape[0], 1)))
    ),
    "with-outlier": lambda rng, shape: rng.standard_normal(shape) * np.r_[100, np.ones(127)],
    "of-one-sign": lambda rng, shape: np.abs(rng.standard_normal(shape)),
    "far-from-zero": lambda rng, shape: (
        rng.standard_normal(shape) + 10 * rng.standard_normal((shape[0], 1))
    ),
    "coarse": lambda rng, shape: np.round(8 * rng.standard_normal(shape)) / 8,
    "flat": lambda rng, shape: np.repeat(rng.standard_normal((shape[0], 1)), shape[1], axis=1),
    "zero": lambda rng, shape: np.zeros(shape),
}


@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_gives_out_what_it_gave_before(kind: str, group_size: int) -> None:
    rng = np.random.default_rng(1)
    size = group_size or 128
    made = KINDS[kind](rng, (1200, 128)).astype(F32).reshape(-1, size)
    state = quantise(made)
    seen = dequantise(*state).reshape(1, 1, 1200, 128)
    packed = pack_rows(seen, form="u8", group_size=group_size)
    assert packed.values.dtype == np.uint8
    assert packed.num_groups == 128 // size
    assert np.array_equal(unpack_rows(packed, is_for_engine=False), seen)
    given_back = unpack_rows(packed, is_for_engine=True).reshape(-1, size)
    again = quantise(given_back)
    assert np.array_equal(dequantise(*again).reshape(seen.shape), seen)
    assert np.array_equal(again[0], state[0])
    if kind not in ("of-one-sign", "far-from-zero"):  # there two scales may give the same values
        assert np.array_equal(again[1], state[1])
        assert np.array_equal(again[2], state[2])


def test_what_the_engine_gives_out_is_not_what_it_takes() -> None:
    """Why any of this exists: the values themselves, quantised anew, are others by a last bit."""
    state = quantise(np.random.default_rng(1).standard_normal((2000, 128)).astype(F32))
    seen = dequantise(*state)
    assert not np.array_equal(dequantise(*quantise(seen)), seen)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(1e-6, 1e6),
    shift=st.floats(-3, 3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.sampled_from([8, 16, 64])),
)
def test_law_of_the_quantised_form(
    seed: int, spread: float, shift: float, shape: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    made = ((rng.standard_normal(shape) + shift) * spread).astype(F32).reshape(-1, shape[2])
    seen = dequantise(*quantise(made)).reshape(1, *shape)
    packed = pack_rows(seen, form="u8")
    assert np.array_equal(unpack_rows(packed, is_for_engine=False), seen)
    if packed.limits is not None:
        back = unpack_rows(packed, is_for_engine=True).reshape(-1, shape[2])
        assert np.array_equal(dequantise(*quantise(back)).reshape(seen.shape), seen)


NUMBERS = np.random.default_rng(2).standard_normal((1, 2, 50, 16)).astype(F32)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((NUMBERS.view(np.uint32) & 0xFFFF0000).view(F32), np.uint16),
        (NUMBERS.astype(np.float16).astype(F32), np.float16),
        (NUMBERS, np.float32),
        (np.where(NUMBERS > 2, np.nan, NUMBERS), np.float32),
        (np.where(NUMBERS > 2, np.inf, NUMBERS).astype(F32), np.float32),
        (np.where(NUMBERS > 0, 0.0, -0.0).astype(F32), np.uint16),
        (NUMBERS * F32(1e30), np.float32),
    ],
    ids=["bf16", "f16", "f32", "nan", "infinite", "minus-zero", "beyond-f16"],
)
@pytest.mark.parametrize("form", ["u8", "f32"])
def test_other_forms_keep_every_bit(values: Array, dtype: Any, form: Any) -> None:
    """Also where a quantised cache is announced and the values are none of one."""
    values = values.astype(F32)
    if form == "u8" and not values.any():
        return  # a quantised cache may hold zeros, and has no minus zero
    packed = pack_rows(values, form=form)
    assert (packed.values.dtype, packed.limits) == (dtype, None)
    for is_for_engine in (False, True):
        back = unpack_rows(packed, is_for_engine=is_for_engine)
        assert np.array_equal(back.view(np.uint32), values.view(np.uint32))


def test_packed_rows_are_a_copy() -> None:
    values = NUMBERS.copy()
    packed = pack_rows(values)
    values[:] = 0
    assert packed.values.any()


def test_a_group_size_that_does_not_divide_the_row_is_not_used() -> None:
    state = quantise(NUMBERS.reshape(-1, 16))
    seen = dequantise(*state).reshape(NUMBERS.shape)
    assert pack_rows(seen, form="u8", group_size=5).values.dtype == np.float32
