"""Figures of two models on the same texts: against plain definitions, and laws they keep."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwen_edge.export.quality.statistics import (
    NUM_TOP,
    PositionScores,
    compare_logits,
    join_scores,
    select_scores,
    summarise,
)

Rows = npt.NDArray[np.float32]


def random_rows(seed: int, num: int = 200, width: int = 50) -> Rows:
    return np.random.default_rng(seed).standard_normal((num, width)).astype(np.float32) * 3


def following(num: int, width: int = 50) -> list[int | None]:
    ids = np.random.default_rng(9).integers(0, width, num - 1).tolist()
    return [*ids, None]


def probabilities(rows: Rows) -> npt.NDArray[np.float64]:
    wide = np.exp(rows.astype(np.float64))
    result: npt.NDArray[np.float64] = wide / wide.sum(axis=1, keepdims=True)
    return result


def test_figures_are_what_their_names_say() -> None:
    expected, found = random_rows(0), random_rows(0) + random_rows(1) * 0.2
    next_ids = following(200)
    scores = compare_logits(expected, found, next_ids)
    p, q = probabilities(expected), probabilities(found)
    kl = (p * np.log(p / q)).sum(axis=1)
    assert scores.kl == pytest.approx(kl, rel=1e-9)
    figures = summarise([scores])
    assert figures.num_positions == 200
    assert figures.mean_kl.value == pytest.approx(kl.mean())
    assert figures.upper_kl.value == pytest.approx(np.quantile(kl, 0.99))
    assert figures.top1.value == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    tops = [np.argsort(rows, axis=1)[:, -NUM_TOP:] for rows in (p, q)]
    shared = [len(set(a) & set(b)) / NUM_TOP for a, b in zip(*tops, strict=True)]
    assert figures.top5.value == pytest.approx(np.mean(shared))
    known = [token for token in next_ids if token is not None]
    surprise = -np.log(p[np.arange(199), known]).mean()
    assert figures.expected_perplexity is not None
    assert figures.expected_perplexity.value == pytest.approx(math.exp(surprise))
    assert figures.found_perplexity is not None
    assert figures.found_perplexity.value != figures.expected_perplexity.value


def test_a_model_is_no_distance_from_itself() -> None:
    rows = random_rows(2)
    figures = summarise([compare_logits(rows, rows, [None] * 200)])
    assert (figures.mean_kl.value, figures.mean_kl.high) == (0, 0)
    assert (figures.top1.value, figures.top5.low) == (1, 1)
    assert figures.expected_perplexity is None


@given(
    rows=hnp.arrays(np.float32, (3, 7), elements=st.floats(-80, 80, width=32)),
    other=hnp.arrays(np.float32, (3, 7), elements=st.floats(-80, 80, width=32)),
    shift=st.floats(-100, 100),
)
def test_logits_that_are_shifted_are_the_same_distribution(
    rows: Rows, other: Rows, shift: float
) -> None:
    plain = compare_logits(rows, other, [0, 1, None])
    shifted = compare_logits(rows, other + np.float32(shift), [0, 1, None])
    assert (plain.kl >= 0).all()
    assert shifted.kl == pytest.approx(plain.kl, abs=2e-3, rel=1e-3)


def test_a_model_that_is_lost_has_an_infinite_perplexity() -> None:
    rows = np.zeros((4, 3), np.float32)
    rows[:, 0] = 10_000
    figures = summarise([compare_logits(rows * 0, rows, [1, 2, 1, None])])
    assert figures.found_perplexity is not None
    assert figures.found_perplexity.value == math.inf
    assert figures.expected_perplexity is not None
    assert figures.expected_perplexity.value == pytest.approx(3)


def test_blocks_and_joining_change_nothing() -> None:
    expected, found = random_rows(3), random_rows(4)
    whole = compare_logits(expected, found, following(200))
    ids = following(200)
    parts = [
        compare_logits(expected[a:b], found[a:b], ids[a:b])
        for a, b in ((0, 3), (3, 131), (131, 200))
    ]
    joined = join_scores(parts)
    assert np.array_equal(joined.kl, whole.kl)
    assert np.array_equal(joined.found_surprise, whole.found_surprise, equal_nan=True)
    chosen = np.arange(200) < 3
    assert np.array_equal(select_scores(whole, chosen).kl, parts[0].kl)


def test_intervals_hold_the_value_and_narrow_with_more_text() -> None:
    def texts(num: int) -> list[PositionScores]:
        return [
            compare_logits(random_rows(i), random_rows(i + 1_000), [None] * 200) for i in range(num)
        ]

    few, many = summarise(texts(1)).mean_kl, summarise(texts(12)).mean_kl
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


def test_an_interval_knows_that_neighbours_are_alike() -> None:
    """Two hundred positions that repeat four are not two hundred."""
    kl = np.repeat(np.random.default_rng(0).exponential(1, 8), 32)
    same = np.ones(256, bool)
    repeated = PositionScores(kl, same, kl * 0, kl, kl)
    mixed_kl = np.random.default_rng(1).permutation(kl)
    mixed = PositionScores(mixed_kl, same, kl * 0, kl, kl)
    wide, narrow = summarise([repeated]).mean_kl, summarise([mixed]).mean_kl
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_figures_are_the_same_again() -> None:
    scores = [compare_logits(random_rows(5), random_rows(6), following(200))]
    assert summarise(scores) == summarise(scores)
    assert summarise(scores, seed=1).mean_kl != summarise(scores).mean_kl


@pytest.mark.parametrize(
    ("a", "b", "n"), [((2, 5), (2, 6), 2), ((2, 5), (3, 5), 2), ((0, 5), (0, 5), 0)]
)
def test_what_cannot_be_compared_is_refused(a: tuple[int, int], b: tuple[int, int], n: int) -> None:
    with pytest.raises(ValueError, match=r"shapes|no positions"):
        compare_logits(np.zeros(a, np.float32), np.zeros(b, np.float32), [None] * n)


@settings(max_examples=8)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(0, 2**32))
def test_intervals_are_those_of_draws_of_blocks(lengths: list[int], seed: int) -> None:
    """Drawn here one by one; `summarise` counts how often each block came instead."""
    generator = np.random.default_rng(seed)
    total = sum(lengths)
    values = generator.exponential(size=total)
    surprise = np.where(generator.random(total) < 0.1, math.nan, values)
    surprise[0] = 1.0
    scores = PositionScores(values, values > 1, values, surprise, surprise)
    ends = np.cumsum(lengths)
    texts = [
        select_scores(scores, (np.arange(total) >= end - size) & (np.arange(total) < end))
        for end, size in zip(ends, lengths, strict=True)
    ]
    figures = summarise(texts)
    starts = [range(end - size, end, 32) for end, size in zip(ends, lengths, strict=True)]
    blocks = [
        values[start : min(start + 32, end)]
        for some, end in zip(starts, ends, strict=True)
        for start in some
    ]
    drawn = np.random.default_rng(0).integers(0, len(blocks), (1_000, len(blocks)))
    draws = [np.concatenate([blocks[index] for index in draw]) for draw in drawn[:1_000]]
    for found, figure in (
        (figures.mean_kl, np.mean),
        (figures.upper_kl, lambda draw: np.quantile(draw, 0.99)),
    ):
        ends_of = np.quantile([figure(draw) for draw in draws], [0.025, 0.975])
        assert [found.low, found.high] == pytest.approx(ends_of, rel=1e-9)
    assert figures.expected_perplexity is not None
    assert figures.expected_perplexity.value == pytest.approx(math.exp(np.nanmean(surprise)))
