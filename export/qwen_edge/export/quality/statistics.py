"""Figures of two models that read the same texts: KL, agreement and perplexity, with intervals.

Everything is computed by position from logits and kept, so that the same numbers can be summed up
for all texts, for one kind of text, or for the beginnings and ends of texts. Neighbouring positions
are alike, so intervals come from drawing blocks of neighbours, not positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime.tuning.divergence import log_softmax

Logits = npt.NDArray[np.float32]
"""float32 [positions, vocab_size]."""

NUM_TOP = 5
UPPER_SHARE = 0.99
_BLOCK_POSITIONS = 32
_NUM_DRAWS = 1_000
_INTERVAL = (0.025, 0.975)
_DRAWN_AT_ONCE = 1 << 20  # positions: 8 MB of them
_ROWS_AT_ONCE = 64  # of a vocabulary of 150,000: 80 MB of float64


@dataclass(frozen=True)
class PositionScores:
    """What each position of a text gave.

    Args:
        kl: float64 [positions], KL of the package's distribution to the reference's, in nats.
        same_top: bool [positions], whether both have the same likeliest token.
        shared_top: float64 [positions], share of the reference's five likeliest tokens that are
            among the package's.
        expected_surprise: float64 [positions], the reference's surprise at the token that
            follows, in nats; NaN after the last.
        found_surprise: The same of the package.
    """

    kl: npt.NDArray[np.float64]
    same_top: npt.NDArray[np.bool_]
    shared_top: npt.NDArray[np.float64]
    expected_surprise: npt.NDArray[np.float64]
    found_surprise: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.kl)


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds it in 95 of 100 draws of texts like these."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """What is said of many positions.

    Args:
        num_positions: How many there are.
        mean_kl: In nats.
        upper_kl: The 99th percentile.
        top1: Share of positions with the same likeliest token.
        top5: Mean share of the five likeliest tokens that are the same.
        expected_perplexity: Of the reference; None where no token follows.
        found_perplexity: Of the package.
    """

    num_positions: int
    mean_kl: Estimate
    upper_kl: Estimate
    top1: Estimate
    top5: Estimate
    expected_perplexity: Estimate | None
    found_perplexity: Estimate | None


def compare_logits(
    expected: Logits, found: Logits, following: Sequence[int | None]
) -> PositionScores:
    """Compare two models after the same tokens.

    Args:
        expected: The reference's logits.
        found: The package's; the same shape.
        following: The token that comes next at each position; None where there is none.

    Raises:
        ValueError: Shapes differ, or there is nothing to compare.
    """
    if expected.shape != found.shape or expected.ndim != 2 or len(following) != len(expected):
        raise ValueError(
            f"logits have shapes {expected.shape} and {found.shape} for {len(following)} tokens"
        )
    if not len(expected):
        raise ValueError("there are no positions to compare")
    parts = [
        _compare_block(
            expected[start : start + _ROWS_AT_ONCE],
            found[start : start + _ROWS_AT_ONCE],
            following[start : start + _ROWS_AT_ONCE],
        )
        for start in range(0, len(expected), _ROWS_AT_ONCE)
    ]
    return join_scores(parts)


def join_scores(parts: Sequence[PositionScores]) -> PositionScores:
    """Return the positions of several texts one after the other.

    Args:
        parts: At least one.
    """
    return PositionScores(
        kl=np.concatenate([part.kl for part in parts]),
        same_top=np.concatenate([part.same_top for part in parts]),
        shared_top=np.concatenate([part.shared_top for part in parts]),
        expected_surprise=np.concatenate([part.expected_surprise for part in parts]),
        found_surprise=np.concatenate([part.found_surprise for part in parts]),
    )


def select_scores(scores: PositionScores, chosen: npt.NDArray[np.bool_]) -> PositionScores:
    """Return some positions of a text.

    Args:
        scores: Of the text.
        chosen: bool [positions].
    """
    return PositionScores(
        kl=scores.kl[chosen],
        same_top=scores.same_top[chosen],
        shared_top=scores.shared_top[chosen],
        expected_surprise=scores.expected_surprise[chosen],
        found_surprise=scores.found_surprise[chosen],
    )


def summarise(texts: Sequence[PositionScores], *, seed: int = 0) -> Figures:
    """Sum up texts.

    Args:
        texts: At least one, each with positions in order: blocks of neighbours never reach from
            one text into the next.
        seed: Of the draws for the intervals; the same seed gives the same figures.
    """
    scores = join_scores(texts)
    draws = _draw_blocks([len(text) for text in texts], seed)
    kl, same = scores.kl, scores.same_top.astype(np.float64)
    return Figures(
        num_positions=len(scores),
        mean_kl=_mean(kl, draws),
        upper_kl=_upper(kl, draws),
        top1=_mean(same, draws),
        top5=_mean(scores.shared_top, draws),
        expected_perplexity=_perplexity(scores.expected_surprise, draws),
        found_perplexity=_perplexity(scores.found_surprise, draws),
    )


def _compare_block(
    expected: Logits, found: Logits, following: Sequence[int | None]
) -> PositionScores:
    wanted, got = log_softmax(expected), log_softmax(found)
    # Rounding can make it no less than 0.
    kl = np.maximum((np.exp(wanted) * (wanted - got)).sum(axis=1), 0.0)
    tops = [_likeliest(rows) for rows in (expected, found)]
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(*tops, strict=True)]
    return PositionScores(
        kl=kl,
        same_top=expected.argmax(axis=1) == found.argmax(axis=1),
        shared_top=np.array(shared),
        expected_surprise=_surprise(wanted, following),
        found_surprise=_surprise(got, following),
    )


def _likeliest(rows: Logits) -> npt.NDArray[np.intp]:
    """Return the ids of the likeliest tokens of each row, in no order."""
    count = min(NUM_TOP, rows.shape[1])
    return np.argpartition(rows, rows.shape[1] - count, axis=1)[:, -count:]


def _surprise(
    log_probs: npt.NDArray[np.float64], following: Sequence[int | None]
) -> npt.NDArray[np.float64]:
    return np.array(
        [
            math.nan if token is None else -row[token]
            for row, token in zip(log_probs, following, strict=True)
        ]
    )


@dataclass(frozen=True)
class _Draws:
    """Positions of texts like these, drawn by blocks with replacement, many times.

    Args:
        block_of: int [positions], the block of each.
        counts: int [draws, blocks], how often each block was drawn.
    """

    block_of: npt.NDArray[np.intp]
    counts: npt.NDArray[np.int32]


def _draw_blocks(lengths: Sequence[int], seed: int) -> _Draws:
    sizes: list[int] = []
    for length in lengths:
        sizes += [
            min(_BLOCK_POSITIONS, length - start) for start in range(0, length, _BLOCK_POSITIONS)
        ]
    num_blocks = len(sizes)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, num_blocks, (_NUM_DRAWS, num_blocks))
    counts = np.stack([np.bincount(draw, minlength=num_blocks) for draw in drawn])
    return _Draws(np.repeat(np.arange(num_blocks), sizes), counts.astype(np.int32))


def _mean(values: npt.NDArray[np.float64], draws: _Draws) -> Estimate:
    """Return the mean of the numbers among values, NaN left out."""
    known = ~np.isnan(values)
    num_blocks = draws.counts.shape[1]
    block_sums = np.bincount(draws.block_of, np.where(known, values, 0.0), num_blocks)
    block_sizes = np.bincount(draws.block_of, known.astype(np.float64), num_blocks)
    sizes = draws.counts @ block_sizes
    drawn = (draws.counts @ block_sums)[sizes > 0] / sizes[sizes > 0]
    low, high = np.quantile(drawn, _INTERVAL)
    return Estimate(float(values[known].mean()), float(low), float(high))


def _upper(values: npt.NDArray[np.float64], draws: _Draws) -> Estimate:
    """Return the 99th percentile, between neighbours by their distance as numpy has it."""
    order = np.argsort(values, kind="stable")
    ordered, block_of = values[order], draws.block_of[order]
    at_once = max(1, _DRAWN_AT_ONCE // len(values))
    drawn = []
    for start in range(0, len(draws.counts), at_once):
        counts = draws.counts[start : start + at_once]
        until = np.cumsum(counts[:, block_of], axis=1)  # how many drawn values come up to each
        place = UPPER_SHARE * (until[:, -1] - 1)
        first = place.astype(np.intp)
        low = ordered[(until <= first[:, None]).sum(axis=1)]
        # The last value has no neighbour above, and needs none.
        above = (until <= first[:, None] + 1).sum(axis=1)
        high = ordered[np.minimum(above, len(values) - 1)]
        drawn.append(low + (place - first) * (high - low))
    low_end, high_end = np.quantile(np.concatenate(drawn), _INTERVAL)
    return Estimate(float(np.quantile(values, UPPER_SHARE)), float(low_end), float(high_end))


def _perplexity(surprises: npt.NDArray[np.float64], draws: _Draws) -> Estimate | None:
    if np.isnan(surprises).all():
        return None
    mean = _mean(surprises, draws)
    with np.errstate(over="ignore"):  # a model that is lost may come to infinity
        value, low, high = (float(np.exp(one)) for one in (mean.value, mean.low, mean.high))
    return Estimate(value, low, high)
