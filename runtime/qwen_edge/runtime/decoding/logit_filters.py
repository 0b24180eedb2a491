"""Narrows the choice of the next token: temperature, top-k, top-p, min-p, typical-p, the draw.

Pure functions over one row of scores. The rules and their order are those of Transformers; the
ways here are faster, and choose the same tokens. A vocabulary has 150,000 entries, of which a
few hundred matter, so nothing sorts all of them unless it has to. `sampling.py` calls this.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from qwen_edge.runtime.decoding.sampling import SamplingParams

Scores = npt.NDArray[np.float32]
Weights = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

_GROUP_SIZE = 128
_CANDIDATE_COUNTS = (256, 8_192)
_MAX_EXACT = 8_192


def filter_logits(scores: Scores, params: "SamplingParams", peak: float) -> tuple[Ids, Weights]:
    """Return the tokens that may be drawn and how likely they are.

    Args:
        scores: float32 [vocab_size], -Inf for tokens that are excluded.
        params: With a temperature that is not greedy.
        peak: The largest score, finite.

    Returns:
        `(token_ids, weights)`, [n] each, n >= 1. The ids ascend, so that from scores which
        differ by rounding only the same token is drawn. The largest weight is 1 and the least
        above 0. Up to 8,192 weights are exact to float64, more of them to float32.

    Source:
        TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper,
        TypicalLogitsWarper in transformers 5.5.4, `generation/logits_process.py`, in this order.
    """
    kept: Ids | None = None  # all
    if 0 < params.top_k < scores.shape[0]:
        # A positive temperature keeps the order, so the cheapest filter goes first.
        kept = indices_of_largest(scores, params.top_k)
    weights = _weigh(scores if kept is None else scores[kept], peak, params.temperature)
    if params.top_p < 1.0:
        kept, weights = _narrow(kept, weights, _indices_up_to(weights, params.top_p))
    if params.min_p > 0.0:
        # Relative to the largest weight, which is 1.
        kept, weights = _narrow(kept, weights, np.flatnonzero(weights >= params.min_p))
    if params.typical_p < 1.0:
        kept, weights = _narrow(kept, weights, _indices_of_typical(weights, params.typical_p))
    if not weights.all():
        kept, weights = _narrow(kept, weights, np.flatnonzero(weights))
    return np.arange(weights.shape[0]) if kept is None else kept, weights


def draw(weights: Weights, threshold: float) -> int:
    """Return the index that a random number falls on.

    Args:
        weights: float [n], each above 0.
        threshold: In [0, 1).
    """
    sums: Weights = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(sums, threshold * float(sums[-1]), side="right"))
    return min(index, len(weights) - 1)


def indices_of_largest(values: Weights, k: int) -> Ids:
    """Return where the k largest values are, in ascending order, ties with the k-th included.

    Args:
        values: float [n]. What is -Inf is never among them, so there may be fewer than k.
        k: 1 <= k <= n.
    """
    num_groups = values.shape[0] // _GROUP_SIZE
    if 4 * k < num_groups:
        # The best of k groups are k values, so the k-th largest of all is not below them.
        tops = values[: num_groups * _GROUP_SIZE].reshape(_GROUP_SIZE, num_groups).max(axis=0)
        floor = _kth_largest(tops, k)
    else:
        floor = _kth_largest(values, k)
    few = np.flatnonzero(values >= floor if floor > -np.inf else values > floor)
    if few.shape[0] <= k:
        return few
    heights = values[few]
    largest: Ids = few[heights >= _kth_largest(heights, k)]
    return largest


def _weigh(scores: Scores, peak: float, temperature: float) -> Weights:
    """Return how likely tokens are at a temperature, relative to the likeliest one."""
    exact: Weights = scores.astype(np.float64) if scores.shape[0] <= _MAX_EXACT else scores.copy()
    # In place: for arrays of this size getting memory takes longer than the arithmetic.
    with np.errstate(over="ignore"):  # what is that far below the peak has no weight
        exact -= peak
        exact /= temperature
    return np.exp(exact, out=exact)


def _narrow(kept: Ids | None, weights: Weights, places: Ids) -> tuple[Ids, Weights]:
    """Return the ids and weights at some places; ids None stand for all."""
    return places if kept is None else kept[places], weights[places]


def _kth_largest(values: Weights, k: int) -> float:
    """Return the k-th largest value, 1 <= k <= n."""
    place = values.shape[0] - k
    return float(np.partition(values, place)[place])


def _indices_up_to(weights: Weights, share: float) -> Ids:
    """Return where the largest weights are whose sum reaches a share of all, in ascending order.

    Args:
        weights: float [n].
        share: Below 1. The weight that crosses it is kept too, so at least one is.

    Returns:
        int64 [m], 1 <= m <= n. Of equal weights the first ones are taken.
    """
    target = share * float(weights.sum(dtype=np.float64))
    few = _candidates(weights, weights, target)
    candidates = weights[few]
    ordered = np.sort(candidates)[::-1].astype(np.float64)
    before = np.cumsum(ordered)
    before -= ordered
    num_kept = max(1, int(np.count_nonzero(before < target)))
    floor = ordered[num_kept - 1]
    is_kept = candidates >= floor
    num_over = int(np.count_nonzero(is_kept)) - num_kept
    if num_over:
        is_kept[np.flatnonzero(candidates == floor)[-num_over:]] = False
    kept: Ids = few[is_kept]
    return kept


def _indices_of_typical(weights: Weights, mass: float) -> Ids:
    """Return where the most typical weights are whose sum reaches a share of all.

    A token's information is the negative logarithm of its probability; it is typical when this
    is near the mean over all tokens. Ties with the last one are kept.

    Args:
        weights: float [n].
        mass: Below 1.
    """
    total = float(weights.sum(dtype=np.float64))
    # A token's information is log(total) less this, and log(total) cancels out.
    heights = np.log(weights, where=weights > 0, out=np.full_like(weights, -np.inf))
    shares = np.multiply(weights, heights, where=weights > 0, out=np.zeros_like(weights))
    nearness = -np.abs(heights - float(shares.sum(dtype=np.float64)) / total)
    few = _candidates(nearness, weights, mass * total)
    order = few[np.argsort(-nearness[few])]
    sums = np.cumsum(weights[order], dtype=np.float64)
    last = min(int(np.count_nonzero(sums < mass * total)), order.shape[0] - 1)
    return np.flatnonzero(nearness >= nearness[order[last]])


def _candidates(ranks: Weights, weights: Weights, target: float) -> Ids:
    """Return where the highest ranks are, enough of them for their weights to reach a target.

    Sorting a whole vocabulary takes many milliseconds; a few tokens nearly always suffice.
    """
    for k in _CANDIDATE_COUNTS:
        if k >= weights.shape[0]:
            break
        few = indices_of_largest(ranks, k)
        if float(weights[few].sum(dtype=np.float64)) >= target:
            return few
    return np.arange(weights.shape[0])
