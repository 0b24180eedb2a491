"""Sampling: the filters are Transformers', the draws are reproducible, bad logits are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import ParityError, UsageError
from qwen_edge.runtime.sampling import SamplingParams, filter_logits, make_sampler

DATA = Path(__file__).parents[1] / "data"
GOLDENS: list[dict[str, Any]] = json.loads(
    (DATA / "sampling_goldens.json").read_text(encoding="utf-8")
)


def name_of(golden: dict[str, Any]) -> str:
    return "t{temperature}-k{top_k}-p{top_p}-m{min_p}".format(**golden)


@pytest.mark.parametrize("golden", GOLDENS, ids=name_of)
def test_filters_equal_transformers_warpers(golden: dict[str, Any]) -> None:
    fields = ("temperature", "top_k", "top_p", "min_p")
    params = SamplingParams(**{field: golden[field] for field in fields})
    token_ids, probabilities = filter_logits(np.array(golden["logits"], np.float32), params)
    order = np.argsort(token_ids)
    assert token_ids[order].tolist() == golden["kept_ids"]
    np.testing.assert_allclose(probabilities[order], golden["probabilities"], atol=1e-6)


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60),
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 70),
    top_p=st.floats(0.001, 1.0),
    min_p=st.floats(0, 1),
)
def test_the_likeliest_token_is_always_kept_and_probabilities_sum_to_one(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature, top_k, top_p, min_p)
    scores = np.array(logits, np.float32)
    token_ids, probabilities = filter_logits(scores, params)
    # Logits that differ by less than a probability can tell are equals.
    assert scores[token_ids].max() == pytest.approx(scores.max(), abs=1e-6)
    assert probabilities.sum() == pytest.approx(1.0)
    assert len(set(token_ids.tolist())) == len(token_ids)


@pytest.mark.parametrize("temperature", [0.5, 50.0], ids=["steep", "flat"])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_whole_vocabulary_is_cut_as_the_plain_rule_says(temperature: float, top_p: float) -> None:
    """The shortcut over a few candidates must not change which tokens are kept."""
    logits = np.random.default_rng(2).standard_normal(20_000).astype(np.float32) * 4
    params = SamplingParams(temperature=temperature, top_k=0, top_p=top_p)
    token_ids, probabilities = filter_logits(logits, params)
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order]) / weights.sum()
    assert token_ids.tolist() == order[: np.searchsorted(sums, top_p) + 1].tolist()
    assert probabilities.sum() == pytest.approx(1.0)


def test_greedy_takes_the_first_of_equals_whatever_the_other_fields_say() -> None:
    sample = make_sampler(SamplingParams(temperature=0.0, top_k=3, seed=1))
    assert [sample(np.array([0, 5, 5, 1], np.float32)) for _ in range(3)] == [1, 1, 1]


def test_the_same_seed_draws_the_same_tokens_and_another_one_does_not() -> None:
    logits = np.zeros(1000, np.float32)

    def draw(seed: int) -> list[int]:
        sample = make_sampler(SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=seed))
        return [sample(logits) for _ in range(20)]

    assert draw(11) == draw(11)
    assert draw(11) != draw(12)
    assert draw(11)[:4] == [128, 499, 601, 28]  # stable over NumPy versions


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sample = make_sampler(SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=3))
    counts = np.bincount([sample(logits) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unusable_logits_are_refused(temperature: float, bad: float) -> None:
    sample = make_sampler(SamplingParams(temperature=temperature))
    with pytest.raises(ParityError, match="next-token scores"):
        sample(np.array([0, bad, 1], np.float32))
    with pytest.raises(ParityError, match="-inf"):
        sample(np.full(4, -np.inf, np.float32))


def test_excluded_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    sample = make_sampler(SamplingParams(temperature=5.0, top_k=0, top_p=1.0, seed=5))
    assert {sample(logits) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", float("nan")),
        ("temperature", True),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.facts["field"] == field


def test_defaults_can_be_read_from_the_class() -> None:
    assert SamplingParams.temperature == SamplingParams().temperature == 0.6
