"""From next-token logits to a token id: greedy, or temperature, top-k, top-p and min-p.

The filters and their order are those of Transformers, so published settings mean the same
here. This module knows nothing of text or of the cache.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import ParityError, UsageError

Sampler = Callable[[npt.NDArray[np.float32]], int]
"""Maps next-token logits, float32 [vocab_size], to a token id."""

_MAX_TEMPERATURE = 100.0
_MAX_SEED = 2**64 - 1
_NUM_CANDIDATES = 1_024


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    Args:
        temperature: In [0, 100]. 0 is greedy: the likeliest token, whatever the rest says.
        top_k: Keep the k likeliest tokens (ties with the k-th are kept). 0 keeps all.
        top_p: In (0, 1]. Keep the likeliest tokens until their sum reaches this. 1 keeps all.
        min_p: In [0, 1]. Keep tokens at least this likely relative to the likeliest. 0 keeps all.
        seed: In [0, 2^64). Same seed, same logits: same tokens. None draws a fresh one.

    Raises:
        UsageError: A field is out of range; the message names it.

    Source:
        Defaults: model card of Qwen/Qwen3-4B, "Best Practices", thinking mode.
    """

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, low=0.0, high=_MAX_TEMPERATURE)
        _check_integer("top_k", self.top_k, low=0, high=2**31 - 1)
        _check_number("top_p", self.top_p, low=0.0, high=1.0)
        if self.top_p == 0.0:
            raise UsageError(
                "top_p is 0.0, which keeps no token; expected more than 0 and at most 1.",
                "for the likeliest token each time, use temperature 0",
                field="top_p",
                value=self.top_p,
            )
        _check_number("min_p", self.min_p, low=0.0, high=1.0)
        if self.seed is not None:
            _check_integer("seed", self.seed, low=0, high=_MAX_SEED)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0


def make_sampler(params: SamplingParams) -> Sampler:
    """Return a sampler with its own random stream.

    Args:
        params: Checked settings.

    Returns:
        A function from logits, float32 [vocab_size], to a token id. It raises `ParityError`
        when the logits hold NaN, +Inf, or nothing but -Inf.

    State:
        The returned function advances its random stream by one draw per call, unless greedy.
    """
    if params.is_greedy:
        return _sample_greedy
    # PCG64 and uniform doubles are stable across NumPy versions; Generator.choice is not.
    random = np.random.Generator(np.random.PCG64(params.seed))

    def sample(logits: npt.NDArray[np.float32]) -> int:
        token_ids, probabilities = filter_logits(logits, params)
        threshold = random.random()
        index = int(np.searchsorted(np.cumsum(probabilities), threshold, side="right"))
        return int(token_ids[min(index, len(token_ids) - 1)])

    return sample


def filter_logits(
    logits: npt.NDArray[np.float32], params: SamplingParams
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the tokens that may be drawn and their probabilities.

    Args:
        logits: float32 [vocab_size].
        params: With a temperature above 0.

    Returns:
        `(token_ids, probabilities)`, int64 [n] and float64 [n], n >= 1, in an order that
        depends on nothing but the arguments. The probabilities sum to 1.

    Raises:
        ParityError: The logits are not finite where they must be.

    Source:
        TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper in
        transformers 5.5.4, `generation/logits_process.py`, in that order.
    """
    peak = _check_logits(logits)
    vocab_size = logits.shape[0]
    kept = np.arange(vocab_size)
    if 0 < params.top_k < vocab_size:
        # A positive temperature keeps the order, so the cheap filter goes first.
        kept = np.flatnonzero(logits >= _kth_largest(logits, params.top_k))
    weights = np.exp((logits[kept].astype(np.float64) - peak) / params.temperature)
    total = weights.sum()
    if params.min_p > 0.0:
        # The likeliest weight is 1. Both this and top-p keep a beginning of the same order,
        # so they may be applied in either order, as long as the sum is the one from before.
        likely = weights >= params.min_p
        kept, weights = kept[likely], weights[likely]
    if params.top_p < 1.0:
        order = _likeliest_first(weights, params.top_p * total)
        kept, weights = kept[order], weights[order]
    return kept.astype(np.int64), weights / weights.sum()


def _likeliest_first(weights: npt.NDArray[np.float64], target: float) -> npt.NDArray[np.int64]:
    """Return the indices of the largest weights until their sum reaches a target.

    Args:
        weights: float64 [n].
        target: The one that crosses it is kept too; at least one is kept.

    Returns:
        int64 [m], 1 <= m <= n, largest weight first, equal ones in order of their index.
    """
    candidates = np.arange(weights.shape[0])
    if weights.shape[0] > _NUM_CANDIDATES:
        # Sorting a whole vocabulary takes 20 ms; a few tokens nearly always suffice.
        few = np.flatnonzero(weights >= _kth_largest(weights, _NUM_CANDIDATES))
        if weights[few].sum() >= target:
            candidates = few
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    return order[: max(1, int(np.count_nonzero(before < target)))]


def _kth_largest(values: npt.NDArray[np.floating], k: int) -> float:
    """Return the k-th largest value, 1 <= k <= n."""
    index = values.shape[0] - k
    return float(np.partition(values, index)[index])


def _sample_greedy(logits: npt.NDArray[np.float32]) -> int:
    """Return the id of the largest logit, float32 [vocab_size]; the first one of equals."""
    _check_logits(logits)
    return int(np.argmax(logits))


def _check_logits(logits: npt.NDArray[np.float32]) -> float:
    """Return the largest logit; raise ParityError when it is not a finite number."""
    peak = float(np.max(logits))
    if not math.isfinite(peak):
        raise ParityError(
            f"The model returned no usable next-token scores: the largest of {logits.shape[0]:,} "
            f"is {peak}. Nothing can be chosen from them.",
            "check the package with `qwen-edge verify`; if it passes, try --device CPU",
            largest_logit=peak,
        )
    return peak


def _check_number(field: str, value: float, *, low: float, high: float) -> None:
    """Raise UsageError unless `value` is a real number in [low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise _out_of_range(field, value, low, high)


def _check_integer(field: str, value: int, *, low: int, high: int) -> None:
    """Raise UsageError unless `value` is an integer in [low, high]."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise _out_of_range(field, value, low, high)


def _out_of_range(field: str, value: object, low: float, high: float) -> UsageError:
    """Return the error for one field."""
    return UsageError(
        f"{field} is {value!r}; expected a number from {low:,} to {high:,}.",
        f"give {field} a value in that range, or leave it out",
        field=field,
        value=value,
    )


THINKING_PRESET = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, min_p=0.0)
"""Source: model card of Qwen/Qwen3-4B, "Best Practices", enable_thinking=True."""

ANSWER_PRESET = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, min_p=0.0)
"""Source: model card of Qwen/Qwen3-4B, "Best Practices", enable_thinking=False."""
