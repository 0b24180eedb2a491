"""Rows of a KV cache in the form the engine keeps them: 8 or 16 bits a value instead of 32.

OpenVINO gives its cache out as float32 and takes it back so, whatever it keeps inside. A cache of
8 bits does not survive that as it is: the engine quantises what it is given anew, and finds other
scales by a last bit. Here the whole numbers it keeps are found again, and with them a lowest and
a highest value of each group from which its own arithmetic arrives at the very same scale. So a
cache takes a quarter of the room and comes back bit for bit. Only where all values of a group
have one sign can two scales give the same values; then the likelier is taken, which in made-up
groups of 128 was wrong once in 7,000, and in a model's rows, of both signs, never. This module
knows no engine.

Source:
    openvinotoolkit/openvino@00262ea, src/plugins/intel_cpu/src/nodes/kernels/scaled_attn/
    attn_quant.cpp: quant_u8 and find_minmax; checked against 2026.4.1 by the tests.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
"""float32 [1, kv_heads, rows, head_dim], as the engine gives and takes them."""
Form = Literal["u8", "bf16", "f16", "f32"]
_Values = npt.NDArray[Any]

_BLOCK_ROWS = 1024  # rows at a time: with heads of 128 numbers, half a MB, which caches hold
_LEVELS = np.float32(255)
_FLAT_SCALE = np.float32(0.0001)  # what the engine takes where all values of a group are equal
_HIGHEST_BITS = 16
# How far, in units of the last bit, the limits of a group may lie from its outermost values: in
# their distance, the lower one, the upper one besides. The likeliest first. Measured, 8,320 rows:
# 83 % need none, and the others lie within 2.
_NUDGES = sorted(
    itertools.product((0, 0.5, -0.5, 1, -1, 1.5, -1.5, 2, -2, 3, -3), range(-3, 4), range(-1, 2)),
    key=lambda nudge: (sum(map(abs, nudge)), nudge),
)[1:]
_MOST_ODD_SHARE, _FEW_GROUPS = 0.5, 16


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows of one variable of the cache.

    Args:
        values: [1, kv_heads, rows, head_dim]. uint8: whole numbers of a quantised cache;
            uint16: the upper halves of float32, which is bf16; float16 or float32: the values.
        limits: For uint8, float32 [1, kv_heads, rows, groups, 2]: what the lowest and the
            highest value of each group must be; else None.
    """

    values: _Values
    limits: Rows | None = None

    @property
    def num_groups(self) -> int:
        """Groups of a row that have a scale of their own."""
        return 1 if self.limits is None else self.limits.shape[3]


def pack_rows(rows: Rows, *, form: Form = "f32", group_size: int = 0) -> PackedRows:
    """Return rows in as few bits as hold them exactly.

    Args:
        rows: As the engine gave them.
        form: "u8" where the engine quantises, else what is tried may be wider than this.
        group_size: Values of a row that share a scale; 0 for all of a row.

    Returns:
        Arrays of its own. Rows in which the engine's arithmetic is not recognised stay float32.
    """
    if form == "u8":
        packed = _quantise(rows, group_size or rows.shape[3])
        if packed is not None:
            return packed
    bits = np.ascontiguousarray(rows).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return PackedRows((bits >> _HIGHEST_BITS).astype(np.uint16))
    with np.errstate(over="ignore"):
        halves = rows.astype(np.float16)
    if np.array_equal(halves.astype(np.float32).view(np.uint32), bits):
        return PackedRows(halves)
    return PackedRows(np.array(rows))


def unpack_rows(packed: PackedRows, *, is_for_engine: bool) -> Rows:
    """Return packed rows as float32 [1, kv_heads, rows, head_dim], a new array.

    Args:
        packed: What `pack_rows` returned; of any origin, its shapes checked.
        is_for_engine: True for the rows to give to the engine, which arrives by them at what it
            had; False for those that it then gives out, and gave out before.
    """
    values = packed.values
    if packed.limits is not None:
        return _dequantise(values, packed.limits, is_for_engine=is_for_engine)
    if values.dtype == np.uint16:
        bits = values.astype(np.uint32) << _HIGHEST_BITS
        return bits.view(np.float32)
    return values.astype(np.float32)


def _quantise(rows: Rows, group_size: int) -> PackedRows | None:
    """Return rows as whole numbers with their limits, or None where one does not fit."""
    shape = rows.shape
    num_groups, rest = divmod(shape[3], group_size)
    if rest:
        return None
    numbers = np.empty(shape, dtype=np.uint8)
    limits = np.empty((*shape[:3], num_groups, 2), dtype=np.float32)
    for head, part in _iter_blocks(shape):
        groups = np.ascontiguousarray(rows[0, head, part]).reshape(-1, group_size)
        found = _quantise_groups(groups)
        if found is None:
            return None
        numbers[0, head, part] = found[0].reshape(-1, shape[3])
        limits[0, head, part] = found[1].reshape(-1, num_groups, 2)
    return PackedRows(numbers, limits)


def _quantise_groups(groups: Rows) -> tuple[npt.NDArray[np.uint8], Rows] | None:
    """Return the whole numbers [n, size] and limits [n, 2] of groups [n, size], or None."""
    low, high = groups.min(axis=1), groups.max(axis=1)
    with np.errstate(all="ignore"):
        if not np.isfinite(high - low).all():
            return None
        limits = np.stack([low, high], axis=1)
        scale, zero = _scale_of(low, high)
        steps = (groups - low[:, None]) * (1 / scale)[:, None]
        numbers = np.rint(steps, out=steps).astype(np.uint8)
        left = np.flatnonzero((_scaled(numbers, scale, zero) != groups).any(axis=1))
        if left.size > _MOST_ODD_SHARE * len(groups) + _FEW_GROUPS:
            return None  # no cache that is quantised so
        for nudge in _NUDGES:
            if not left.size:
                return numbers, limits
            nudged = _nudge(low[left], high[left], nudge)
            is_right = _is_exact(groups, numbers, left, nudged)
            limits[left[is_right]] = nudged[is_right]
            left = left[~is_right]
    return None if left.size else (numbers, limits)


def _nudge(low: Rows, high: Rows, nudge: tuple[float, float, float]) -> Rows:
    """Return limits [n, 2] some units of the last bit away from the outermost values."""
    of_span, of_low, of_high = (np.float32(part) for part in nudge)
    span = high - low
    unit = np.spacing(np.maximum(span, np.maximum(np.abs(low), np.abs(high))))
    lowest = low + of_low * np.spacing(np.abs(low))
    highest = lowest + (span + of_span * unit)
    highest += of_high * np.spacing(np.abs(highest))
    # A group of equal values has to stay one: its numbers are all 0.
    return np.stack([lowest, np.where(span > 0, highest, lowest)], axis=1)


def _is_exact(
    groups: Rows, numbers: npt.NDArray[np.uint8], left: npt.NDArray[np.intp], limits: Rows
) -> npt.NDArray[np.bool_]:
    """Return for each of the groups `left` whether these limits give its very values."""
    scale, zero = _scale_of(limits[:, 0], limits[:, 1])
    is_right = np.zeros(left.size, dtype=np.bool_)
    # One value decides for most; the others are asked only where it fits.
    some = np.flatnonzero((numbers[left, 0] - zero) * scale == groups[left, 0])
    chosen = left[some]
    values = _scaled(numbers[chosen], scale[some], zero[some])
    is_right[some] = (values == groups[chosen]).all(axis=1)
    return is_right


def _dequantise(numbers: npt.NDArray[np.uint8], limits: Rows, *, is_for_engine: bool) -> Rows:
    """Return [1, kv_heads, rows, head_dim] of whole numbers and limits."""
    shape = numbers.shape
    rows = np.empty(shape, dtype=np.float32)
    group_size = shape[3] // limits.shape[3]
    for head, part in _iter_blocks(shape):
        block = np.ascontiguousarray(numbers[0, head, part]).reshape(-1, group_size)
        low, high = (limits[0, head, part, :, side].reshape(-1) for side in (0, 1))
        with np.errstate(all="ignore"):
            scale, zero = _scale_of(low, high)
            groups = _scaled(block, scale, zero)
            if is_for_engine:
                _put_limits(groups, block, (low, high), (scale, zero))
        rows[0, head, part] = groups.reshape(-1, shape[3])
    return rows


def _put_limits(
    groups: Rows,
    numbers: npt.NDArray[np.uint8],
    limits: tuple[Rows, Rows],
    scaling: tuple[Rows, Rows],
) -> None:
    """Put the limits in the place of the outermost values, where those are others."""
    scale, zero = scaling
    for limit, number in zip(limits, (np.uint8(0), np.uint8(_LEVELS)), strict=True):
        odd = np.flatnonzero((number - zero) * scale != limit)
        changed = groups[odd]
        np.copyto(changed, limit[odd, None], where=numbers[odd] == number)
        groups[odd] = changed


def _scale_of(low: Rows, high: Rows) -> tuple[Rows, Rows]:
    """Return scale and zero point that the engine gives to groups with these limits."""
    scale = (high - low) / _LEVELS
    scale[scale == 0] = _FLAT_SCALE
    return scale, -low / scale


def _scaled(numbers: npt.NDArray[np.uint8], scale: Rows, zero: Rows) -> Rows:
    """Return the values of whole numbers [n, size] as the engine computes them."""
    values = numbers.astype(np.float32)
    values -= zero[:, None]
    values *= scale[:, None]
    return values


def _iter_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    for head in range(shape[1]):
        for start in range(0, shape[2], _BLOCK_ROWS):
            yield head, slice(start, start + _BLOCK_ROWS)
