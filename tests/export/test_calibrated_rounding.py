"""Integers chosen by what weights are multiplied with: the textbook's, and never a worse choice."""

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import CheckpointError
from qwen_edge.export.calibrated import rounding
from qwen_edge.export.calibrated.rounding import (
    DAMPING,
    SHRINKAGE,
    Grid,
    fit_grid,
    round_with_gptq,
    round_with_scales,
)
from qwen_edge.export.compress import SourceMatrix, dequantise, stored_parts
from qwen_edge.export.quantise import Quantised, quantise

pytestmark = pytest.mark.usefixtures("one_thread")

Matrix = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]
Round = Callable[[Matrix, Matrix, int, bool], Quantised]

SHAPES = [(96, 32), (64, 64), (200, -1)]  # width, group size
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])


def make_weights(rows: int, width: int, seed: int) -> Matrix:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, width)) * 0.02).astype(np.float32)


def make_products(width: int, seed: int, num_rows: int = 400, spread: float = 1.0) -> Matrix:
    """Return mean products of correlated inputs, whose channels differ by about e to `spread`."""
    random = np.random.default_rng(seed)
    mix = np.eye(width) + random.standard_normal((width, width)) * 0.7 * width**-0.5
    inputs = random.standard_normal((num_rows, width)) @ mix
    inputs *= np.exp(spread * random.standard_normal(width))
    return (inputs.T @ inputs / num_rows).astype(np.float32)


def blocks_of(products: Matrix, group_size: int) -> Matrix:
    """Return what scale estimation takes: products within groups, or squares."""
    group = 1 if group_size == -1 else group_size
    starts = range(0, len(products), group)
    return np.stack([products[i : i + group, i : i + group] for i in starts])


def with_scales(weights: Matrix, products: Matrix, group_size: int, symmetric: bool) -> Quantised:
    blocks = blocks_of(products, group_size)
    return round_with_scales(weights, blocks, group_size, symmetric=symmetric)


def with_gptq(weights: Matrix, products: Matrix, group_size: int, symmetric: bool) -> Quantised:
    return round_with_gptq(weights, products, group_size, symmetric=symmetric)


METHODS = pytest.mark.parametrize("method", [with_scales, with_gptq], ids=["scales", "gptq"])


def parts_of(done: Quantised) -> dict[str, npt.NDArray[np.generic]]:
    return stored_parts(SourceMatrix("matrix", done.values, "F32"), done)


def decode(done: Quantised) -> Exact:
    return dequantise(parts_of(done), "int4").astype(np.float64)


def cost(weights: Matrix, rounded: Exact, products: Matrix) -> Exact:
    """Return what rounding costs each row's output, float64 [rows]."""
    errors = weights - rounded
    costs: Exact = np.einsum("ri,ij,rj->r", errors, products.astype(np.float64), errors)
    return costs


def relative_error(weights: Matrix, rounded: Exact) -> float:
    return float(np.linalg.norm(rounded - weights) / np.linalg.norm(weights))


def nearest(weights: Matrix, done: Quantised) -> Exact:
    """Return what rounding each weight by itself on the same grid gives."""
    rows, groups = len(weights), done.scale.size // len(weights)
    scale = done.scale.astype(np.float32).reshape(rows, groups, 1)
    low: float | Matrix = -8.0
    if done.zero_point is not None:
        low = -done.zero_point.astype(np.float32).reshape(rows, groups, 1)
    parts = weights.reshape(rows, groups, -1)
    numbers = np.clip(np.rint(parts / scale), low, low + np.float32(15))
    return (numbers * scale).reshape(rows, -1).astype(np.float64)


def plain_grid(columns: Exact, *, symmetric: bool) -> tuple[Exact, Exact]:
    """Return scale and least integer that the largest of [rows, group] ask for."""
    if symmetric:
        places = np.abs(columns).argmax(axis=1)
        largest = np.take_along_axis(columns, places[:, None], axis=1)[:, 0]
        return (-largest / 8).astype(np.float16).astype(np.float64), np.full(len(columns), -8.0)
    smallest, largest = np.minimum(columns.min(axis=1), 0), np.maximum(columns.max(axis=1), 0)
    scale = ((largest - smallest) / 15).astype(np.float16).astype(np.float64)
    return scale, -np.clip(np.rint(-smallest / scale), 0, 15)


def textbook(
    weights: Matrix, products: Matrix, group_size: int, *, symmetric: bool, searches: bool
) -> Exact:
    """Return GPTQ's weights as its authors' program computes them, column by column in float64.

    Source:
        Frantar and others, "GPTQ", algorithm 1, with the inverse's Cholesky factor; columns with
        large inputs first, groups staying together, a group's scale chosen when it is reached.
    """
    rows, width = weights.shape
    group = width if group_size == -1 else group_size
    squares = np.diagonal(products).astype(np.float64)
    by_group = np.argsort(-squares.reshape(-1, group).sum(axis=1))
    order = np.concatenate(
        [g * group + np.argsort(-squares[g * group : (g + 1) * group]) for g in by_group]
    )
    exact = products.astype(np.float64)[np.ix_(order, order)]
    exact += np.eye(width) * DAMPING * squares.mean()
    factor = np.linalg.cholesky(np.linalg.inv(exact)).T
    left = weights.astype(np.float64)[:, order]
    rounded = np.zeros((rows, width))
    scale = low = np.zeros(rows)
    for column in range(width):
        if column % group == 0:
            targets = left[:, column : column + group]
            scale, low = plain_grid(targets, symmetric=symmetric)
            if searches:
                metric = np.linalg.inv(np.linalg.inv(exact[column:, column:])[:group, :group])
                metric = squares[order] if group_size == -1 else metric
                narrow = (np.ascontiguousarray(a, np.float32) for a in (targets.T, metric))
                grid = fit_grid(*narrow, symmetric=symmetric, searches=True)
                scale, low = grid.scale.astype(np.float64), grid.low.astype(np.float64)
        numbers = np.clip(np.rint(left[:, column] / scale), low, low + 15)
        rounded[:, order[column]] = numbers * scale
        error = (left[:, column] - numbers * scale) / factor[column, column]
        left[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    return rounded


@SYMMETRIC
@pytest.mark.parametrize("searches", [False, True], ids=["largest", "searched"])
@pytest.mark.parametrize(("width", "group_size"), [*SHAPES, (512, 256)])
def test_gptq_is_the_textbooks(
    width: int, group_size: int, searches: bool, symmetric: bool
) -> None:
    """A number just between two levels may fall to either side, so not every row has to agree."""
    weights, products = make_weights(16, width, seed=1), make_products(width, seed=2)
    expected = textbook(weights, products, group_size, symmetric=symmetric, searches=searches)
    found = decode(
        round_with_gptq(
            weights, products, group_size, symmetric=symmetric, scale_estimation=searches
        )
    )
    agree = (found == expected).all(axis=1)
    assert agree.sum() >= 14
    assert cost(weights, found, products) == pytest.approx(
        cost(weights, expected, products), rel=0.1
    )


def weights_with_float16_scales(
    rows: int, width: int, group_size: int, *, symmetric: bool
) -> Matrix:
    """Return weights whose largest ask for scales that float16 holds exactly."""
    random = np.random.default_rng(3)
    group = width if group_size == -1 else group_size
    parts = random.uniform(-4, 4, (rows, width // group, group))
    if symmetric:
        parts[:, :, 5] = random.choice([-8, 8], parts.shape[:2])
    else:
        parts[:, :, 5] = random.integers(-11, -4, parts.shape[:2])
        parts[:, :, 6] = parts[:, :, 5] + 15
    parts = parts * random.integers(1, 500, (*parts.shape[:2], 1)) / 1024
    return parts.reshape(rows, width).astype(np.float32)


@SYMMETRIC
@pytest.mark.parametrize(("width", "group_size"), SHAPES)
def test_gptq_on_unrelated_inputs_is_plain_rounding(
    width: int, group_size: int, symmetric: bool
) -> None:
    weights = weights_with_float16_scales(20, width, group_size, symmetric=symmetric)
    expected = quantise(weights, "F32", "int4_sym" if symmetric else "int4_asym", group_size)
    identity = np.eye(width, dtype=np.float32)
    found = round_with_gptq(
        weights, identity, group_size, symmetric=symmetric, scale_estimation=False
    )
    for key, array in parts_of(expected).items():
        np.testing.assert_array_equal(parts_of(found)[key], array)
    assert parts_of(found).keys() == parts_of(expected).keys()
    assert found.values.dtype == np.uint8


@METHODS
@SYMMETRIC
@pytest.mark.parametrize(("width", "group_size"), SHAPES)
def test_unrelated_inputs_leave_each_weight_to_itself(
    width: int, group_size: int, symmetric: bool, method: Round
) -> None:
    weights = make_weights(24, width, seed=4)
    done = method(weights, np.eye(width, dtype=np.float32), group_size, symmetric)
    np.testing.assert_array_equal(decode(done), nearest(weights, done))


@SYMMETRIC
@pytest.mark.parametrize(("width", "group_size"), SHAPES)
def test_scale_estimation_rounds_to_nearest(width: int, group_size: int, symmetric: bool) -> None:
    """So what is stored is what was chosen, whatever the inputs are."""
    weights, products = make_weights(24, width, seed=4), make_products(width, seed=5)
    done = with_scales(weights, products, group_size, symmetric)
    np.testing.assert_array_equal(decode(done), nearest(weights, done))


@METHODS
@SYMMETRIC
@pytest.mark.parametrize(("width", "group_size"), SHAPES)
def test_the_form_is_that_of_plain_rounding(
    width: int, group_size: int, symmetric: bool, method: Round
) -> None:
    """Two numbers a byte, the first in the lower half; signed, or above the zero point."""
    weights, products = make_weights(7, width, seed=6), make_products(width, seed=7)
    done = method(weights, products, group_size, symmetric)
    plain = quantise(weights, "F32", "int4_sym" if symmetric else "int4_asym", group_size)
    for key, array in parts_of(plain).items():
        assert parts_of(done)[key].shape == array.shape
        assert parts_of(done)[key].dtype == array.dtype
    expected = np.empty((7, width))
    group = width if group_size == -1 else group_size
    scale = done.scale.reshape(7, -1).astype(np.float64)
    for row, column in np.ndindex(7, width):
        byte = int(done.values[row, column // 2])
        number = byte >> 4 if column % 2 else byte & 15
        if done.zero_point is None:
            number -= 16 if number > 7 else 0
        else:
            number -= int(done.zero_point.reshape(7, -1)[row, column // group])
        expected[row, column] = number * scale[row, column // group]
    np.testing.assert_array_equal(decode(done), expected)
    assert relative_error(weights, decode(done)) < 0.5


@st.composite
def groups(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    """Draw a group of columns of some rows, and what errors in it cost."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    group, rows = draw(st.sampled_from([2, 32, 64])), draw(st.integers(1, 6))
    size = draw(st.sampled_from([1e-7, 0.02, 3.0]))
    heaviness = draw(st.sampled_from([1, 3]))
    columns = size * random.standard_normal((group, rows)) ** heaviness
    inputs = random.standard_normal((draw(st.integers(1, 80)), group))
    inputs *= np.exp(2 * random.standard_normal(group))
    metric = inputs.T @ inputs / len(inputs)
    if draw(st.booleans()):
        metric = np.diagonal(metric)
    return columns.astype(np.float32), metric.astype(np.float32)


def cost_of(columns: Matrix, grid: Grid, metric: Matrix) -> tuple[Exact, Exact]:
    """Return what rounding to a grid costs each row, and how exactly float32 can know."""
    exact = np.diag(metric) if metric.ndim == 1 else metric
    exact = exact.astype(np.float64)
    errors = columns.astype(np.float64) - grid.nearest(columns) * grid.scale.astype(np.float64)
    terms = np.abs(errors) * (np.abs(exact) @ np.abs(errors))
    return (errors * (exact @ errors)).sum(axis=0), 1e-5 * terms.sum(axis=0) + 1e-35


@given(drawn=groups(), symmetric=st.booleans())
def test_searching_scales_never_costs_more(drawn: tuple[Matrix, Matrix], symmetric: bool) -> None:
    columns, metric = drawn
    plain = fit_grid(columns, metric, symmetric=symmetric, searches=False)
    found = fit_grid(columns, metric, symmetric=symmetric, searches=True)
    before, unsure = cost_of(columns, plain, metric)
    after, also_unsure = cost_of(columns, found, metric)
    assert (after <= before + unsure + also_unsure).all()
    for grid in (plain, found):
        assert (grid.scale == grid.scale.astype(np.float16)).all()
        assert (grid.scale != 0).all()
        assert (grid.high == grid.low + 15).all()
        assert ((grid.low == -8) if symmetric else (grid.low <= 0) & (grid.low >= -15)).all()


@SYMMETRIC
@pytest.mark.parametrize("group_size", [32, -1])
def test_searching_scales_pays(group_size: int, symmetric: bool) -> None:
    """By a tenth and more of what plain rounding costs, where each group has inputs of its own."""
    weights, products = make_weights(64, 64, seed=8), make_products(64, seed=9, num_rows=40)
    mode = partial(quantise, weights, "F32", "int4_sym" if symmetric else "int4_asym")
    plain = decode(mode(group_size))
    found = decode(with_scales(weights, products, group_size, symmetric))
    blocks = blocks_of(products, group_size)
    within = np.zeros_like(products)
    for index, block in enumerate(blocks):
        part = slice(index * len(block), (index + 1) * len(block))
        within[part, part] = block
    assert cost(weights, found, within).sum() < 0.9 * cost(weights, plain, within).sum()


@SYMMETRIC
@pytest.mark.parametrize("searches", [False, True], ids=["largest", "searched"])
@pytest.mark.parametrize("group_size", [32, -1])
def test_gptq_costs_less_than_rounding_to_nearest(
    group_size: int, searches: bool, symmetric: bool
) -> None:
    """No law for a single row; over a matrix it is."""
    ratios = []
    for seed in range(6):
        weights, products = make_weights(32, 64, seed), make_products(64, seed + 50, spread=0.5)
        done = round_with_gptq(
            weights, products, group_size, symmetric=symmetric, scale_estimation=searches
        )
        if searches:
            plain = with_scales(weights, products, group_size, symmetric)
        else:
            mode = "int4_sym" if symmetric else "int4_asym"
            plain = quantise(weights, "F32", mode, group_size)  # type: ignore[arg-type]
        before = cost(weights, decode(plain), products).sum()
        ratios.append(cost(weights, decode(done), products).sum() / before)
    assert max(ratios) < 0.95
    assert float(np.mean(ratios)) < 0.85


@METHODS
@SYMMETRIC
def test_rows_know_nothing_of_each_other(
    method: Round, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "_ROWS_AT_ONCE", 64)
    weights, products = make_weights(300, 32, seed=10), make_products(32, seed=11)
    whole = method(weights, products, 32, symmetric)
    apart = [method(part, products, 32, symmetric) for part in (weights[:128], weights[128:])]
    for key, array in parts_of(whole).items():
        parts = [parts_of(done)[key] for done in apart]
        np.testing.assert_array_equal(array, np.concatenate(parts))
    for num_cores in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda count=num_cores: count)
        again = method(weights, products, 32, symmetric)
        for key, array in parts_of(whole).items():
            np.testing.assert_array_equal(array, parts_of(again)[key])
    # In another order the library may add up products otherwise: a few numbers may differ.
    order = np.random.default_rng(12).permutation(300)
    mixed = decode(method(weights[order], products, 32, symmetric))
    assert (mixed == decode(whole)[order]).all(axis=1).mean() > 0.98


@METHODS
@SYMMETRIC
@pytest.mark.parametrize(("width", "group_size"), SHAPES)
def test_inputs_that_are_all_zero(
    width: int, group_size: int, symmetric: bool, method: Round
) -> None:
    weights = make_weights(9, width, seed=13)
    done = method(weights, np.zeros((width, width), np.float32), group_size, symmetric)
    np.testing.assert_array_equal(decode(done), nearest(weights, done))
    assert relative_error(weights, decode(done)) < 0.2


@METHODS
@SYMMETRIC
@pytest.mark.parametrize(("width", "group_size"), SHAPES)
def test_channels_that_are_dead_or_huge_or_copies(
    width: int, group_size: int, symmetric: bool, method: Round
) -> None:
    """From few tokens, so that products have no inverse of their own."""
    random = np.random.default_rng(14)
    inputs = random.standard_normal((11, width)) * 10.0 ** random.uniform(-6, 4, width)
    inputs[:, ::7] = 0
    inputs[:, 3] = inputs[:, 9] * 1.000001
    inputs[3, 11:13] = 1e5  # of one token only, as those that models attend to without reason
    products = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    weights = make_weights(32, width, seed=15)
    done = method(weights, products, group_size, symmetric)
    assert np.isfinite(done.scale).all()
    assert (done.scale != 0).all()
    mode = "int4_sym" if symmetric else "int4_asym"
    plain = decode(quantise(weights, "F32", mode, group_size))  # type: ignore[arg-type]
    found = decode(done)
    if method is with_gptq:
        assert cost(weights, found, products).sum() < 0.5 * cost(weights, plain, products).sum()
    assert relative_error(weights, found) < 0.5


def test_products_of_no_inputs_are_refused() -> None:
    """More damping is for sums that are not exact; it does not make products of anything else."""
    products = make_products(32, seed=20)
    products[3, 5] = products[5, 3] = 1e6
    with pytest.raises(np.linalg.LinAlgError):
        round_with_gptq(make_weights(4, 32, seed=21), products, 32)


@METHODS
@SYMMETRIC
def test_rows_and_groups_of_zeros_and_of_tiny_numbers(method: Round, symmetric: bool) -> None:
    weights, products = make_weights(8, 64, seed=16), make_products(64, seed=17)
    weights[0] = 0
    weights[1] = -0.0
    weights[2] = 1e-40
    weights[3] = 1e-9
    weights[4, :32] = 0
    weights[5, 32:] = -1e-12
    done = method(weights, products, 32, symmetric)
    found = decode(done)
    assert (done.scale != 0).all()
    assert not found[:3].any()
    assert np.abs(found[3]).max() < 1e-7
    if method is with_scales:
        assert not found[4, :32].any()
        assert not found[5, 32:].any()
    assert relative_error(weights, found) < 0.2


@METHODS
@SYMMETRIC
@pytest.mark.parametrize("group_size", [32, -1])
def test_weights_too_large_for_a_scale_are_refused(
    method: Round, group_size: int, symmetric: bool
) -> None:
    weights, products = make_weights(1_100, 64, seed=18), make_products(64, seed=19)
    largest = 60_000 * (8 if symmetric else 15)
    weights[1_099, 3] = largest
    assert np.isfinite(decode(method(weights, products, group_size, symmetric))).all()
    weights[1_099, 3] = 2 * largest
    with pytest.raises(CheckpointError, match="scale does not fit"):
        decode(method(weights, products, group_size, symmetric))


@pytest.mark.parametrize(("width", "group_size"), SHAPES)
def test_scales_are_not_chosen_for_the_channels_of_one_text_alone(
    width: int, group_size: int
) -> None:
    """Channels that one text hardly uses keep a say; where all are alike, nothing changes."""
    weights = make_weights(64, width, seed=3)
    alike, lopsided = np.eye(width, dtype=np.float32), make_products(width, seed=4, spread=4.0)

    def round_by(products: Matrix, share: float) -> Exact:
        blocks = blocks_of(products, group_size)
        return decode(round_with_scales(weights, blocks, group_size, shrinkage=share))

    np.testing.assert_array_equal(round_by(alike, SHRINKAGE), round_by(alike, 0.0))
    with_a_say = cost(weights, round_by(lopsided, SHRINKAGE), alike).sum()
    assert with_a_say < 0.97 * cost(weights, round_by(lopsided, 0.0), alike).sum()
