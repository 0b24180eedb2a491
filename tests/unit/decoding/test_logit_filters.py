"""Filters: they keep what Transformers' keep, also where they take a shortcut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.decoding.logit_filters import draw, filter_logits, indices_of_largest
from qwen_edge.runtime.decoding.logit_processors import LogitChanges
from qwen_edge.runtime.decoding.sampling import SamplingParams

DATA = Path(__file__).parents[2] / "data"
GOLDENS: list[dict[str, Any]] = json.loads(
    (DATA / "sampling_goldens.json").read_text(encoding="utf-8")
)
NOT_SETTINGS = ("prompt_ids", "logits", "kept_ids", "probabilities")


def settings_of(golden: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in golden.items() if key not in NOT_SETTINGS}


def name_of(golden: dict[str, Any]) -> str:
    rest = [key for key in settings_of(golden) if key not in ("temperature", "top_k", "top_p")]
    return "-".join(["t{temperature}-k{top_k}-p{top_p}-m{min_p}".format(**golden), *rest[1:]])


def choose(
    logits: npt.NDArray[np.float32], params: SamplingParams
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the kept ids and their probabilities."""
    token_ids, weights = filter_logits(logits, params, float(logits.max()))
    return token_ids, weights.astype(np.float64) / weights.sum(dtype=np.float64)


@pytest.mark.parametrize("golden", GOLDENS, ids=name_of)
def test_filters_and_their_order_are_those_of_transformers(golden: dict[str, Any]) -> None:
    params = SamplingParams(**settings_of(golden))
    changes = LogitChanges(params, golden["prompt_ids"])
    scores = changes.apply(np.array(golden["logits"], np.float32), None)
    token_ids, probabilities = choose(scores, params)
    assert token_ids.tolist() == golden["kept_ids"]
    np.testing.assert_allclose(probabilities, golden["probabilities"], atol=1e-6)


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60),
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 70),
    top_p=st.floats(0.001, 1.0),
    min_p=st.floats(0, 1),
)
def test_the_likeliest_token_is_always_kept_and_ids_ascend(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature, top_k, top_p, min_p)
    scores = np.array(logits, np.float32)
    token_ids, weights = filter_logits(scores, params, float(scores.max()))
    # Logits that differ by less than a weight can tell are equals.
    assert scores[token_ids].max() == pytest.approx(scores.max(), abs=1e-6)
    assert weights.max() == pytest.approx(1.0)
    assert weights.min() > 0
    assert (np.diff(token_ids) > 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0], ids=["steep", "middle", "flat"])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_over_a_whole_vocabulary_is_the_plain_rule(temperature: float, top_p: float) -> None:
    """The shortcut over a few candidates must not change which tokens are kept."""
    logits = np.random.default_rng(2).standard_normal(20_000).astype(np.float32) * 4
    params = SamplingParams(temperature=temperature, top_k=0, top_p=top_p)
    token_ids, probabilities = choose(logits, params)
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order]) / weights.sum()
    kept = np.sort(order[: np.searchsorted(sums, top_p) + 1])
    assert token_ids.tolist() == kept.tolist()
    np.testing.assert_allclose(probabilities, weights[kept] / weights[kept].sum(), rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0], ids=["steep", "middle", "flat"])
@pytest.mark.parametrize("mass", [0.1, 0.9, 0.999])
def test_typical_p_over_a_whole_vocabulary_is_the_plain_rule(
    temperature: float, mass: float
) -> None:
    logits = np.random.default_rng(3).standard_normal(20_000).astype(np.float32) * 4
    params = SamplingParams(temperature=temperature, top_k=0, top_p=1.0, typical_p=mass)
    token_ids, _ = choose(logits, params)
    heights = (logits.astype(np.float64) - logits.max()) / temperature
    log_probabilities = heights - np.log(np.exp(heights).sum())
    entropy = -(np.exp(log_probabilities) * log_probabilities).sum()
    distance = np.abs(-log_probabilities - entropy)
    order = np.argsort(distance)
    last = np.searchsorted(np.cumsum(np.exp(log_probabilities[order])), mass)
    # In float32 the token at the limit may go either way.
    assert abs(len(token_ids) - (last + 1)) <= 1
    assert set(token_ids.tolist()) ^ set(order[: last + 1].tolist()) <= {
        *order[max(last - 1, 0) : last + 3].tolist()
    }


@given(
    values=st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=30),
    k=st.integers(1, 30),
    num_copies=st.sampled_from([1, 50]),
)
def test_the_largest_values_are_found_with_their_ties(
    values: list[float], k: int, num_copies: int
) -> None:
    """The shortcut over groups, taken for long rows, gives what sorting gives."""
    row = np.array(values * num_copies, np.float32)
    k = min(k, row.shape[0])
    least = np.sort(row)[-k]
    assert indices_of_largest(row, k).tolist() == [
        index for index, value in enumerate(row) if value >= least and value > -np.inf
    ]


@pytest.mark.parametrize("k", [1, 20, 200, 5_000])
def test_the_largest_of_a_whole_vocabulary_are_found(k: int) -> None:
    row = np.random.default_rng(k).standard_normal(151_936).astype(np.float32)
    assert indices_of_largest(row, k).tolist() == sorted(np.argsort(-row)[:k].tolist())


def test_of_equals_at_the_limit_top_p_keeps_the_first() -> None:
    params = SamplingParams(1.0, top_k=0, top_p=0.35)
    scores = np.array([0, 1, 0, 1, 1, 0, 1, 1], np.float32)
    assert choose(scores, params)[0].tolist() == [1, 3, 4]  # 0.18 each


def test_excluded_tokens_are_not_kept_by_any_filter() -> None:
    logits = np.full(400, -np.inf, np.float32)
    logits[[7, 300]] = [0.0, -200.0]
    for params in (
        SamplingParams(1.0, top_k=50, top_p=1.0),
        SamplingParams(1.0, top_k=0, top_p=1.0),
        SamplingParams(1.0, top_k=0, top_p=0.99999999),
        SamplingParams(1.0, top_k=0, top_p=1.0, typical_p=0.99999999),
    ):
        assert set(choose(logits, params)[0].tolist()) <= {7, 300}
    coldest = SamplingParams(0.00001, top_k=0, top_p=1.0, typical_p=0.5)
    assert choose(logits, coldest)[0].tolist() == [7]


@pytest.mark.parametrize(
    ("threshold", "index"),
    [(0.0, 0), (0.249, 0), (0.25, 1), (0.749, 1), (0.75, 2), (np.nextafter(1, 0), 2)],
)
def test_a_draw_falls_where_the_sums_say(threshold: float, index: int) -> None:
    assert draw(np.array([0.5, 1.0, 0.5]), threshold) == index
