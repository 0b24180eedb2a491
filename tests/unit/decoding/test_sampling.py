"""Sampling: settings are checked, draws are reproducible, bad logits are refused."""

import pickle
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import ParityError, UsageError
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams

OPEN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=11)


def floats(values: Sequence[float]) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def make_mask(allowed: Sequence[int], vocab_size: int) -> npt.NDArray[np.int32]:
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def draw(params: SamplingParams, logits: npt.NDArray[np.float32], count: int) -> list[int]:
    sampler = Sampler(params)
    return [sampler.sample(logits) for _ in range(count)]


def test_greedy_takes_the_first_of_equals_whatever_the_filters_say() -> None:
    for params in (
        SamplingParams(0.0, top_k=3, top_p=0.1, typical_p=0.1, seed=1),
        replace(OPEN, temperature=0.000009),
    ):
        assert draw(params, floats([0, 5, 5, 1]), 9) == [1] * 9


def test_the_same_seed_draws_the_same_tokens_and_another_one_does_not() -> None:
    logits = np.zeros(1000, np.float32)
    assert draw(OPEN, logits, 20) == draw(OPEN, logits, 20)
    assert draw(OPEN, logits, 20) != draw(replace(OPEN, seed=12), logits, 20)
    assert draw(OPEN, logits, 4) == [128, 499, 601, 28]  # stable over NumPy versions
    assert draw(replace(OPEN, seed=None), logits, 20) != draw(replace(OPEN, seed=None), logits, 20)


@pytest.mark.parametrize("params", [OPEN, SamplingParams(seed=3)], ids=["open", "qwen"])
def test_what_is_asked_besides_does_not_change_the_draws(params: SamplingParams) -> None:
    """One draw per token, whether or not there is a mask or log-probabilities are wanted."""
    rows = np.random.default_rng(1).standard_normal((50, 300)).astype(np.float32)
    everything = make_mask(range(300), 300)
    plain, masked = Sampler(params), Sampler(params)
    described = Sampler(replace(params, num_logprobs=5))
    for row in rows:
        token_id = plain.sample(row)
        assert masked.sample(row, everything) == described.sample(row) == token_id


def test_logits_that_differ_by_rounding_give_the_same_tokens() -> None:
    """Two engines never agree to the last bit; near ties must not swap what a draw means."""
    generator = np.random.default_rng(5)
    params = SamplingParams(seed=9)
    one, other = Sampler(params), Sampler(params)
    for _ in range(100):
        row = generator.standard_normal(200).astype(np.float32)
        row[generator.permutation(200)[:8]] = 20.0  # equals, of which all are kept
        noise = generator.standard_normal(200).astype(np.float32) * np.float32(1e-5)
        assert one.sample(row) == other.sample(row + noise)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(floats([0.5, 0.3, 0.2]))
    counts = np.bincount(draw(replace(OPEN, seed=3), logits, 4000), minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unusable_logits_are_refused_and_change_nothing(temperature: float, bad: float) -> None:
    params = replace(OPEN, temperature=temperature, presence_penalty=1.0)
    good = floats([0, 0.1, 0.2, 0.3])
    sampler, expected = Sampler(params), draw(params, good, 2)
    assert sampler.sample(good) == expected[0]
    for mask in (None, make_mask([0], 4)):  # also where the bad one may not come
        with pytest.raises(ParityError, match="next-token scores"):
            sampler.sample(floats([0, bad, 1, 2]), mask)
    with pytest.raises(ParityError, match="-inf"):
        sampler.sample(np.full(4, -np.inf, np.float32))
    with pytest.raises(ParityError, match="-inf"):
        sampler.sample(floats([-np.inf, 1, 1, 1]), make_mask([0], 4))
    assert sampler.sample(good) == expected[1]


def test_scores_that_a_penalty_makes_infinite_are_refused() -> None:
    sampler = Sampler(replace(OPEN, repetition_penalty=0.1), prompt_ids=[1])
    with pytest.raises(ParityError, match="inf"):
        sampler.sample(floats([0, 3e38]))


def test_excluded_tokens_are_never_drawn() -> None:
    logits = floats([-np.inf, 0, 9, 0, 9, 0])
    params = replace(OPEN, temperature=5.0, banned_token_ids=[2])
    sampler = Sampler(params)
    assert {sampler.sample(logits, make_mask([0, 1, 2, 3], 6)) for _ in range(200)} == {1, 3}


def test_greedy_honours_bias_bans_penalties_and_the_mask() -> None:
    logits = floats([0, 1, 2, 3])
    greedy = SamplingParams(temperature=0.0)

    def first(mask: Any = None, answered: Sequence[int] = (), **changes: Any) -> int:
        sampler = Sampler(replace(greedy, **changes), prompt_ids=[3])
        for token_id in answered:
            sampler.record(token_id)
        return sampler.sample(logits, mask)

    assert first() == 3
    assert first(mask=make_mask([0, 2], 4)) == 2
    assert first(logit_bias={0: 3.5}) == 0
    assert first(banned_token_ids=[3, 2]) == 1
    assert first(repetition_penalty=2.0) == 2  # the prompt holds 3
    assert first(presence_penalty=2.0) == 3  # the answer does not
    assert first(presence_penalty=1.5, answered=[3]) == 2
    assert first(frequency_penalty=0.6, answered=[3, 3]) == 2
    assert first(dry_multiplier=2.0, dry_sequence_breakers=[], answered=[1, 2, 3, 1, 2]) == 2


def test_bans_and_a_mask_that_leave_nothing_are_refused() -> None:
    sampler = Sampler(replace(OPEN, banned_token_ids=[0, 2]))
    logits, mask = floats([0, 1, 2]), make_mask([0, 2], 3)
    with pytest.raises(
        UsageError, match="2 may come next and banned_token_ids holds all"
    ) as caught:
        sampler.sample(logits, mask)
    assert caught.value.facts["num_allowed"] == 2
    assert sampler.sample(logits) == 1
    with pytest.raises(UsageError, match="3 may come next"):
        Sampler(replace(OPEN, banned_token_ids=[0, 1, 2])).sample(logits)


def test_logits_are_not_changed() -> None:
    logits = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    logits.flags.writeable = False
    params = SamplingParams(
        repetition_penalty=2.0,
        frequency_penalty=1.0,
        logit_bias={1: 2.0},
        banned_token_ids=[5],
        dry_multiplier=1.0,
        dry_sequence_breakers=(),
        num_logprobs=2,
    )
    Sampler(params, prompt_ids=[1, 2, 1]).sample(logits, make_mask(range(9), 64))


def test_log_probabilities_are_of_the_models_own_logits() -> None:
    logits = np.log(floats([0.1, 0.2, 0.3, 0.4]))
    params = SamplingParams(temperature=0.0, num_logprobs=2, banned_token_ids=[3], seed=1)
    sampler = Sampler(params)
    assert sampler.describe_last() is None
    assert sampler.sample(logits, make_mask([0, 1, 3], 4)) == 1
    last = sampler.describe_last()
    assert last is not None
    assert last.logprob == pytest.approx(np.log(0.2), abs=1e-6)
    assert [token_id for token_id, _ in last.top] == [3, 2]
    assert [value for _, value in last.top] == pytest.approx(np.log([0.4, 0.3]), abs=1e-6)


@pytest.mark.parametrize(("num_logprobs", "num_top"), [(None, None), (0, 0), (2, 2), (9, 3)])
def test_as_many_log_probabilities_as_asked_for_and_possible(
    num_logprobs: int | None, num_top: int | None
) -> None:
    sampler = Sampler(replace(OPEN, num_logprobs=num_logprobs))
    sampler.sample(floats([1, 1, -np.inf, 1]))
    last = sampler.describe_last()
    assert (None if last is None else len(last.top)) == num_top
    if last is not None:
        assert last.logprob == pytest.approx(-np.log(3))
        assert [token_id for token_id, _ in last.top] == [0, 1, 3][:num_top]


def test_log_probabilities_over_a_whole_vocabulary_are_exact() -> None:
    logits = np.random.default_rng(8).standard_normal(151_936).astype(np.float32) * 3
    sampler = Sampler(SamplingParams(num_logprobs=20, seed=0))
    token_id = sampler.sample(logits)
    last = sampler.describe_last()
    wide = logits.astype(np.float64)
    logprobs = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    order = np.argsort(-wide, kind="stable")[:20]
    assert last is not None
    assert last.logprob == pytest.approx(logprobs[token_id], abs=1e-6)
    assert [index for index, _ in last.top] == order.tolist()
    np.testing.assert_allclose([value for _, value in last.top], logprobs[order], atol=1e-6)


@given(
    prompt=st.lists(st.integers(0, 5), max_size=12),
    head=st.lists(st.integers(0, 5), max_size=8),
    tail=st.lists(st.integers(0, 5), max_size=5),
)
def test_a_copy_draws_the_same_and_goes_its_own_way(
    prompt: list[int], head: list[int], tail: list[int]
) -> None:
    params = SamplingParams(
        temperature=2.0,
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        dry_multiplier=1.0,
        dry_sequence_breakers=[0],
        num_logprobs=0,
        seed=6,
    )
    logits = np.linspace(0, 2, 6).astype(np.float32)

    def go_on(sampler: Sampler, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            sampler.sample(logits)
            sampler.record(token_id)

    def look_ahead(sampler: Sampler) -> list[Any]:
        seen = []
        for _ in range(4):
            seen.append((sampler.describe_last(), sampler.sample(logits)))
            sampler.record(seen[-1][1])
        return seen

    sampler, alone = Sampler(params, prompt_ids=prompt), Sampler(params, prompt_ids=prompt)
    go_on(sampler, head)
    go_on(alone, head)
    twin, third = sampler.copy(), sampler.copy()
    go_on(twin, tail)
    assert look_ahead(sampler) == look_ahead(third) == look_ahead(alone)


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
        ("typical_p", 0),
        ("typical_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 11),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("dry_multiplier", -1),
        ("dry_base", 0.5),
        ("dry_allowed_length", 0),
        ("dry_allowed_length", 51),
        ("dry_range", -1),
        ("dry_sequence_breakers", "\n"),
        ("dry_sequence_breakers", [""]),
        ("dry_sequence_breakers", [1.5]),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", [(1, 2.0), (1, 3.0)]),
        ("logit_bias", [1]),
        ("logit_bias", 5),
        ("banned_token_ids", 5),
        ("banned_token_ids", [True]),
        ("banned_token_ids", [2**31]),
        ("stop_token_ids", ["</s>"]),
        ("seed", -1),
        ("seed", 2**64),
        ("num_logprobs", -1),
        ("num_logprobs", 1001),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.facts["field"] == field
    assert "expected" in caught.value.problem or field == "dry_sequence_breakers"


def test_a_bias_out_of_range_names_its_token() -> None:
    with pytest.raises(UsageError, match=r"logit_bias\[7\] is 100\.5; expected a number from -100"):
        SamplingParams(logit_bias={7: 100.5})


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_a_token_both_wanted_and_banned_is_refused(field: str) -> None:
    wanted: Any = {4: 1.0, 9: 1.0} if field == "logit_bias" else [4, 9]
    with pytest.raises(UsageError, match=f"The token id 9 is in {field} and in banned") as caught:
        SamplingParams(banned_token_ids=[9, 3], **{field: wanted})
    assert caught.value.facts["token_ids"] == [9]


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": {4: 1.0}},
        {"banned_token_ids": [1, 4]},
        {"stop_token_ids": [4]},
        {"dry_multiplier": 1.0, "dry_sequence_breakers": [4]},
    ],
    ids=lambda changes: list(changes)[-1],
)
def test_a_token_beyond_the_vocabulary_is_refused(changes: dict[str, Any]) -> None:
    sampler = Sampler(replace(OPEN, **changes))
    with pytest.raises(
        UsageError, match=f"{list(changes)[-1]} holds the token id 4; expected 0 to 3"
    ):
        sampler.sample(floats([0, 1, 2, 3]))
    sampler.sample(floats([0, 1, 2, 3, 4]))


def test_equal_settings_are_equal_hashable_and_survive_copying() -> None:
    given_one_way = SamplingParams(
        logit_bias={np.int64(7): 1, 2: -3.5}, banned_token_ids={9, 3}, stop_token_ids=[1, 1]
    )
    another = SamplingParams(
        logit_bias=((2, -3.5), (7, 1)), banned_token_ids=[3, 9, 9], stop_token_ids=(1,)
    )
    assert given_one_way == another
    assert len({given_one_way, another, replace(another)}) == 1
    assert pickle.loads(pickle.dumps(another)) == another
    assert another.logit_bias == ((2, -3.5), (7, 1))


def test_each_of_several_answers_has_its_own_seed() -> None:
    params = SamplingParams(seed=2**64 - 1)
    assert [params.for_answer(index).seed for index in range(3)] == [2**64 - 1, 0, 1]
    assert SamplingParams().for_answer(2).seed is None


def test_defaults_can_be_read_from_the_class_and_change_nothing_but_four() -> None:
    assert SamplingParams.temperature == SamplingParams().temperature == 0.6
    defaults = {field.name: field.default for field in fields(SamplingParams)}
    assert all(getattr(SamplingParams, name) == value for name, value in defaults.items())
    logits = np.arange(8, dtype=np.float32)
    sampler = Sampler(OPEN, prompt_ids=[7, 7])
    for _ in range(3):
        sampler.record(7)
    plain = Sampler(OPEN)
    assert [sampler.sample(logits) for _ in range(9)] == [plain.sample(logits) for _ in range(9)]
