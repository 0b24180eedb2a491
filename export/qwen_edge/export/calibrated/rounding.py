"""Integers and scales chosen against what a projection reads, for int4 weights in groups.

Rounding one weight wrongly can be made good by its neighbours, because inputs are correlated: with
H the mean products of the inputs, a row w that becomes q costs (w - q) H (w - q)ᵀ. Scale estimation
looks for the scale that makes this small in each group; GPTQ settles one column after the other
and lets those that follow make up for what was lost. Knows nothing of layers and files.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from qwen_edge.export.quantise import Quantised

Matrix = npt.NDArray[np.float32]

DAMPING = 0.01
"""Share of the mean square input that is added to every channel's. GPTQ's own value; on the demo
model 0.001 to 0.1 give KL 0.0184 to 0.0198."""
SHRINKAGE = 0.45
"""How far scale estimation moves a group's products towards those of channels that are all alike,
after AWQ has made them about so: the text is a sample. On the demo model that is no more than
chance, with outliers it gains 7 % of KL on other texts; without AWQ it costs (docs/LOG.md)."""
_SHARES = (1.0, 1.1, 1.05, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
_NUM_REFINEMENTS = 2
_NUM_LEVELS = 16
_SYMMETRIC_LOW = -8
_SMALLEST_SCALE = np.float32(2.0**-24)  # of float16, in which scales are stored
_PANEL = 512  # columns of the factor that are made at once
_LARGEST_BLOCK = 128  # columns settled one by one, before the columns behind them are told
_ROWS_AT_ONCE = 1_024  # a group of 128 columns of so many rows stays in the second-level cache


@dataclass(frozen=True)
class Grid:
    """What the weights of one group of columns can become, row by row.

    Args:
        scale: float32 [rows], each a float16 and not zero.
        low: float32 [rows], the least integer, in [-15, 0]; the largest is 15 more. Where there
            are zero points this is their negative.
    """

    scale: Matrix
    low: Matrix

    @cached_property
    def high(self) -> Matrix:
        """The largest integers, float32 [rows]."""
        return self.low + np.float32(_NUM_LEVELS - 1)

    def nearest(self, values: Matrix) -> Matrix:
        """Return the integers, as float32, that come nearest to values [..., rows]."""
        integers: Matrix = np.divide(values, self.scale)
        np.rint(integers, out=integers)
        return np.clip(integers, self.low, self.high, out=integers)


@dataclass(frozen=True)
class _Rounded:
    """Some rows: integers float32 [in, rows], and the grid of each group."""

    integers: Matrix
    grids: list[Grid]


@dataclass(frozen=True)
class _Order:
    """In which order columns are settled: from the last to the first of these.

    Args:
        columns: int [width], groups staying together.
        factor: float32 [width, width], lower triangle with H = factor factorᵀ, in that order.
    """

    columns: npt.NDArray[np.intp]
    factor: Matrix


def round_with_scales(
    weights: Matrix,
    products: Matrix,
    group_size: int,
    *,
    symmetric: bool = True,
    shrinkage: float = 0.0,
) -> Quantised:
    """Round to nearest, with the scale of each group that costs the output least.

    Args:
        weights: float32 [out, in].
        products: Mean products of inputs, float32 [groups, group, group]; with one scale a row
            mean squares, [in, 1, 1].
        group_size: A divisor of `in`; -1 for a scale per row.
        symmetric: Without zero points.
        shrinkage: See `SHRINKAGE`.

    Returns:
        int4.

    Source:
        What NNCF calls scale estimation; it weighs channels alone, here their products count.
    """
    group = weights.shape[1] if group_size == -1 else group_size
    whole = [products.reshape(-1)] if group_size == -1 else list(products)
    metrics = [_shrink(metric, shrinkage) for metric in whole]

    def work(rows: Matrix) -> _Rounded:
        columns = np.ascontiguousarray(rows.T)
        grids, integers = [], np.empty_like(columns)
        for index, metric in enumerate(metrics):
            part = slice(index * group, (index + 1) * group)
            grid = fit_grid(columns[part], metric, symmetric=symmetric, searches=True)
            integers[part] = grid.nearest(columns[part])
            grids.append(grid)
        return _Rounded(integers, grids)

    return _for_rows(weights, group_size, work, symmetric=symmetric)


def round_with_gptq(
    weights: Matrix,
    products: Matrix,
    group_size: int,
    *,
    symmetric: bool = True,
    scale_estimation: bool = True,
) -> Quantised:
    """Round column by column, each making good what those before it lost.

    Args:
        weights: float32 [out, in].
        products: Mean products of all inputs, float32 [in, in].
        group_size: A divisor of `in`; -1 for a scale per row.
        symmetric: Without zero points.
        scale_estimation: Look for each group's scale as `round_with_scales` does; else it is set
            by the largest weight.

    Returns:
        int4.

    Source:
        Frantar and others, "GPTQ", 2023. Here the columns are settled from the last to the first,
        so that the Cholesky factor of H serves and its inverse, of twice the work, is not needed:
        column j of (w - q) factor holds e_j f_jj and what later columns left, and the integer that
        makes it smallest is the nearest to w_j + Σ_k>j e_k f_kj / f_jj.
    """
    width = weights.shape[1]
    is_per_row = group_size == -1
    group = width if is_per_row else group_size
    order = _factorise(products, group)
    mean_squares = np.diagonal(products)[order.columns]
    block = _LARGEST_BLOCK if is_per_row else min(group, _LARGEST_BLOCK)

    def fit(targets: Matrix, metric: Matrix) -> Grid:
        return fit_grid(targets, metric, symmetric=symmetric, searches=scale_estimation)

    def work(rows: Matrix) -> _Rounded:
        columns = np.ascontiguousarray(rows.T[order.columns])
        settled = _Settled(columns, order.factor)
        grids = {0: fit(columns, mean_squares)} if is_per_row else {}
        for stop in range(width, 0, -block):
            start = max(stop - block, 0)
            index = 0 if is_per_row else int(order.columns[start]) // group
            if not is_per_row and stop % group == 0:
                grids[index] = fit(*settled.targets(stop - group, stop))
            settled.settle(start, stop, grids[index])
        integers = np.empty_like(columns)
        integers[order.columns] = settled.integers
        return _Rounded(integers, [grids[index] for index in range(width // group)])

    return _for_rows(weights, group_size, work, symmetric=symmetric)


class _Settled:
    """Some rows' columns, from the last to the first, and what settling them lost.

    Args:
        columns: float32 [width, rows], in the order of `factor`.
        factor: float32 [width, width].
    """

    def __init__(self, columns: Matrix, factor: Matrix) -> None:
        self._columns = columns
        self._factor = factor
        self._errors = np.zeros_like(columns)
        self._last_owed: tuple[int, int, Matrix] | None = None
        self.integers = np.zeros_like(columns)

    def targets(self, start: int, stop: int) -> tuple[Matrix, Matrix]:
        """Return what columns should become now, and what missing it costs.

        Returns:
            float32 [stop - start, rows], and float32 [stop - start, stop - start].
        """
        factor = self._factor[start:stop, start:stop]
        owed = self._owed(start, stop)
        made_good = np.linalg.solve(factor.T, owed)
        return self._columns[start:stop] + made_good, factor @ factor.T

    def settle(self, start: int, stop: int, grid: Grid) -> None:
        """Give columns from `stop` - 1 down to `start` their integers."""
        owed = self._owed(start, stop)
        # Row j of it has what column j is told by each of the others.
        told = np.ascontiguousarray(self._factor[start:stop, start:stop].T)
        for column in range(stop - 1, start - 1, -1):
            row, due = told[column - start], owed[column - start]
            if column + 1 < stop:
                due = due + row[column - start + 1 :] @ self._errors[column + 1 : stop]
            wanted = self._columns[column] + due / row[column - start]
            integers = grid.nearest(wanted)
            self.integers[column] = integers
            np.subtract(self._columns[column], integers * grid.scale, out=self._errors[column])

    def _owed(self, start: int, stop: int) -> Matrix:
        """Return what the columns behind `stop` left to these, float32 [stop - start, rows]."""
        last = self._last_owed
        if last is None or last[:2] != (start, stop):  # scales and integers ask for the same
            last = (start, stop, self._factor[stop:, start:stop].T @ self._errors[stop:])
            self._last_owed = last
        return last[2]


def fit_grid(targets: Matrix, metric: Matrix, *, symmetric: bool, searches: bool) -> Grid:
    """Return scale and zero point of each row's group.

    Args:
        targets: float32 [group, rows], one group of columns.
        metric: What errors cost: float32 [group, group], or [group] where products of different
            channels are left out.
        symmetric: Without zero points; scales have the sign that serves best.
        searches: Try ranges around that of the weights, and the best multiple of the integers
            that come out; else the weights' own range decides.
    """
    candidates = _grids_around(targets, symmetric=symmetric)
    best = next(candidates)
    if not searches:
        return best
    lowest = _cost(targets, best, metric)
    for tried in candidates:
        best, lowest = _keep_better(targets, metric, tried, best, lowest)
    for _ in range(_NUM_REFINEMENTS):
        integers = best.nearest(targets)
        weighed = _weigh(metric, integers)
        power = (integers * weighed).sum(axis=0)
        shared = (targets * weighed).sum(axis=0)
        scale = np.divide(shared, power, out=best.scale.copy(), where=power > 0)
        tried = Grid(_as_stored(scale), best.low)
        best, lowest = _keep_better(targets, metric, tried, best, lowest)
    return best


def _grids_around(targets: Matrix, *, symmetric: bool) -> Iterator[Grid]:
    """Yield the grid that the largest weights ask for, then others around it."""
    smallest, largest = targets.min(axis=0), targets.max(axis=0)
    if symmetric:
        # The side with the larger weight gets the level more that one side has.
        widest = np.where(-smallest >= largest, -smallest, -largest) / np.float32(-_SYMMETRIC_LOW)
        low = np.full(len(widest), _SYMMETRIC_LOW, np.float32)
        for sign in (1, -1):
            for share in _SHARES:
                yield Grid(_as_stored(widest * np.float32(sign * share)), low)
        return
    smallest, largest = np.minimum(smallest, 0), np.maximum(largest, 0)
    for share in _SHARES:
        scale = _as_stored((largest - smallest) * np.float32(share / (_NUM_LEVELS - 1)))
        zero = np.rint(-smallest * np.float32(share) / scale)
        yield Grid(scale, -np.clip(zero, 0, _NUM_LEVELS - 1))


def _keep_better(
    targets: Matrix, metric: Matrix, tried: Grid, best: Grid, lowest: Matrix
) -> tuple[Grid, Matrix]:
    cost = _cost(targets, tried, metric)
    is_better = cost < lowest
    scale, low = (
        np.where(is_better, a, b) for a, b in ((tried.scale, best.scale), (tried.low, best.low))
    )
    return Grid(scale, low), np.where(is_better, cost, lowest)


def _cost(targets: Matrix, grid: Grid, metric: Matrix) -> Matrix:
    errors = targets - grid.nearest(targets) * grid.scale
    cost: Matrix = (errors * _weigh(metric, errors)).sum(axis=0)
    return cost


def _weigh(metric: Matrix, values: Matrix) -> Matrix:
    weighed: Matrix = metric @ values if metric.ndim == 2 else metric[:, None] * values
    return weighed


def _shrink(metric: Matrix, share: float) -> Matrix:
    """Return products, or mean squares, moved towards those of channels that are all alike."""
    if not share:
        return metric
    squares = metric if metric.ndim == 1 else np.diagonal(metric)
    shrunk: Matrix = metric * np.float32(1 - share)
    to_all = np.float32(share) * squares.mean()
    shrunk[... if metric.ndim == 1 else np.diag_indices_from(metric)] += to_all
    return shrunk


def _as_stored(scale: Matrix) -> Matrix:
    """Return scales as float16 holds them, its smallest number for what is smaller."""
    stored = scale.astype(np.float16).astype(np.float32)
    tiny = np.abs(stored) < _SMALLEST_SCALE
    return np.where(tiny, np.copysign(_SMALLEST_SCALE, scale), stored)


def _factorise(products: Matrix, group: int) -> _Order:
    """Return the order of columns, the ones that matter most last, and H's factor in it.

    Sums in float32 of channels that are nearly the same can come out with no factor at the usual
    damping; then it is ten times as large, and so on.
    """
    squares = np.diagonal(products)
    per_group = squares.reshape(-1, group)
    groups = np.argsort(per_group.sum(axis=1), kind="stable")
    within = np.argsort(per_group, axis=1, kind="stable")
    columns = (groups[:, None] * group + within[groups]).reshape(-1)
    # A layer that reads nothing but zeros can be rounded in any way.
    mean = squares.mean() or np.float32(1)
    damping = DAMPING
    while True:
        ordered = products[np.ix_(columns, columns)]
        ordered[np.diag_indices_from(ordered)] += np.float32(damping) * mean
        # With ones along the diagonal, float32 suffices for channels of any size.
        roots = np.sqrt(np.diagonal(ordered))
        ordered /= roots[:, None]
        ordered /= roots
        try:
            _cholesky_in_place(ordered)
        except np.linalg.LinAlgError:
            if damping > 1:  # these are no sums of products, or no numbers
                raise
            damping *= 10
            continue
        ordered *= roots[:, None]
        return _Order(columns, ordered)


def _cholesky_in_place(matrix: Matrix) -> None:
    """Replace the lower triangle by the Cholesky factor; what is above the panels stays.

    NumPy's own takes six times the memory of the matrix beside it: 2.3 GB of 378 MB.
    """
    width = len(matrix)
    for start in range(0, width, _PANEL):
        stop = min(start + _PANEL, width)
        panel = matrix[start:, start:stop]
        panel -= matrix[start:, :start] @ matrix[start:stop, :start].T
        size = stop - start
        panel[:size] = np.linalg.cholesky(panel[:size])
        if stop < width:
            panel[size:] = np.linalg.solve(panel[:size], panel[size:].T).T


def _for_rows(
    weights: Matrix, group_size: int, work: Callable[[Matrix], _Rounded], *, symmetric: bool
) -> Quantised:
    """Round blocks of rows on every core and put them together."""
    rows, width = weights.shape
    num_groups = 1 if group_size == -1 else width // group_size
    values = np.empty((rows, width // 2), np.uint8)
    scale = np.empty((rows, num_groups), np.float16)
    zero = np.zeros((rows, num_groups), np.uint8)

    def run(start: int) -> None:
        block = slice(start, min(start + _ROWS_AT_ONCE, rows))
        # A scale beyond float16 becomes infinite, which the compressor looks for. NumPy keeps
        # this setting per thread.
        with np.errstate(over="ignore", invalid="ignore"):
            done = work(weights[block])
            low = np.stack([grid.low for grid in done.grids])
            integers = done.integers
            if not symmetric:  # stored from 0 to 15, beside the one that stands for zero
                integers = integers - np.repeat(low, width // num_groups, axis=0)
                zero[block] = -low.T
            codes = np.ascontiguousarray(integers.T).astype(np.int8).view(np.uint8)
            values[block] = (codes[:, ::2] & 15) | (codes[:, 1::2] << 4)
            scale[block] = np.stack([grid.scale for grid in done.grids], axis=1)

    # Threads of the products would fight with these: 7.4 s of a matrix instead of 3.4.
    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="round") as pool,
    ):
        for _ in pool.map(run, range(0, rows, _ROWS_AT_ONCE)):
            pass  # only to raise what was raised there
    shape = (rows, 1) if group_size == -1 else (rows, num_groups, 1)
    zero_point = None if symmetric else zero.reshape(shape)
    return Quantised(values, scale.reshape(shape), zero_point)
