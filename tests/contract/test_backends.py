"""What every kind of backend promises: one suite, run on each.

The law of the cache: after any sequence of `forward`, `trim`, `reset`, `snapshot` and `restore`
the logits are those of a fresh cache fed the same tokens. `fresh` is OpenVINO's for the ONNX
kinds too, so every line here also compares the two engines. `conftest.py` has the kinds.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.errors import ContextFullError, DeviceError, ParityError, UsageError

VOCAB_SIZE = 64

Obey = Callable[..., None]


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(1, 4)),
        st.tuples(st.just("feed"), st.integers(5, 60)),
        st.tuples(st.just("score"), st.integers(1, 24)),
        st.tuples(st.just("trim"), st.integers(0, 12)),
        st.tuples(st.just("trim share"), st.integers(0, 4)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("snapshot"), st.just(0)),
        st.tuples(st.just("restore"), st.integers(0, 3)),
    ),
    min_size=2,
    max_size=16,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=actions)
def test_law_of_the_cache(kind: Any, obey: Obey, steps: list[tuple[str, int]]) -> None:
    obey(kind.make(), steps, kind.fresh, kind.tolerance)


def test_single_steps_and_chunks_give_the_same(kind: Any) -> None:
    backend = kind.make()
    ids = make_ids(60)
    backend.forward(ids[:40])
    for end in range(41, 61):
        logits = backend.forward(ids[end - 1 : end])
        assert np.abs(logits - kind.fresh(ids[:end])).max() < kind.tolerance, end


def test_logits_belong_to_the_caller(kind: Any) -> None:
    backend = kind.make()
    first = backend.forward([1, 2, 3])
    kept = first.copy()
    second = backend.forward([4])
    assert first.dtype == np.float32
    assert first.shape == (VOCAB_SIZE,)
    assert backend.vocab_size == VOCAB_SIZE
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    second[:] = 99
    assert np.abs(backend.forward([5]) - kind.fresh([1, 2, 3, 4, 5])).max() < kind.tolerance


def test_full_context_names_the_numbers_and_changes_nothing(kind: Any) -> None:
    backend = kind.make()
    limit = backend.max_context_tokens
    ids = make_ids(limit + 1)
    backend.forward(ids[: limit - 10])
    words = f"needs {limit + 1} tokens, but the context holds {limit}"
    with pytest.raises(ContextFullError, match=words):
        backend.forward(ids[limit - 10 :])
    assert backend.cached_tokens == limit - 10
    logits = backend.forward(ids[limit - 10 : limit])
    assert backend.cached_tokens == limit
    assert np.abs(logits - kind.fresh(ids[:limit])).max() < kind.tolerance
    with pytest.raises(ContextFullError):
        backend.forward([1])
    backend.trim(3)
    again = [*ids[: limit - 3], 1, 2, 3]
    assert np.abs(backend.forward([1, 2, 3]) - kind.fresh(again)).max() < kind.tolerance


@pytest.mark.parametrize("token_ids", [[], [VOCAB_SIZE], [1, -1]], ids=["none", "above", "below"])
def test_ids_outside_the_vocabulary_never_reach_the_engine(kind: Any, token_ids: list[int]) -> None:
    """OpenVINO reads past its table for them without a word, ONNX Runtime from its end."""
    backend = kind.make()
    backend.forward([1, 2])
    with pytest.raises(ValueError, match="token_ids"):
        backend.forward(token_ids)
    assert backend.cached_tokens == 2
    assert np.abs(backend.forward([3]) - kind.fresh([1, 2, 3])).max() < kind.tolerance


@pytest.mark.parametrize("num_tokens", [3, -1])
def test_trim_beyond_the_cache_is_refused(kind: Any, num_tokens: int) -> None:
    backend = kind.make()
    backend.forward([1, 2])
    with pytest.raises(ValueError, match="expected 0 to 2"):
        backend.trim(num_tokens)
    assert backend.cached_tokens == 2


def test_closed_backend_refuses_and_closes_twice(kind: Any) -> None:
    backend = kind.make()
    backend.forward([1])
    snapshot = backend.snapshot()
    backend.close()
    backend.close()
    assert backend.cached_tokens == 0
    backend.reset()
    for refused in (
        lambda: backend.forward([1]),
        lambda: backend.forward_scored([1], num_scored=1),
        backend.snapshot,
        lambda: backend.restore(snapshot),
    ):
        with pytest.raises(UsageError, match="The model is closed"):
            refused()


def test_two_of_a_kind_do_not_share_a_cache(kind: Any) -> None:
    one, other = kind.make_apart(), kind.make_apart()
    one.forward(make_ids(20))
    logits = other.forward([1, 2, 3])
    assert np.abs(logits - kind.fresh([1, 2, 3])).max() < kind.tolerance
    both = [*make_ids(20), 4]
    assert np.abs(one.forward([4]) - kind.fresh(both)).max() < kind.tolerance


# Logits after several tokens.


def test_all_kinds_but_fixed_shapes_score_sixteen_tokens_at_once(kind: Any) -> None:
    expected = 1 if kind.name == "openvino-static" else 16
    assert kind.make().max_scored_tokens == expected


@pytest.mark.parametrize("num_scored", [1, 2, 5, 16])
@pytest.mark.parametrize("num_before", [0, 21])
def test_scored_rows_are_those_of_single_steps(kind: Any, num_before: int, num_scored: int) -> None:
    """Also where the tokens are more than one call of the engine takes, 16 here."""
    if kind.name == "openvino-static" and (num_scored > 1 or not num_before):
        return  # gives one row, and takes a second to make
    stepped, backend = kind.make_apart(), kind.make_apart()
    ids = make_ids(num_before + 20)
    if num_before:
        stepped.forward(ids[:num_before])
        backend.forward(ids[:num_before])
    steps = np.stack([stepped.forward([token_id]) for token_id in ids[num_before:]])
    for count in (num_scored, 20):
        rows = backend.forward_scored(ids[num_before : num_before + count], num_scored=num_scored)
        expected = steps[count - num_scored : count]
        assert (rows.dtype, rows.shape) == (np.float32, (num_scored, VOCAB_SIZE))
        assert np.abs(rows - expected).max() < kind.tolerance
        rows[:] = 99  # they belong to the caller
        assert backend.cached_tokens == num_before + count
        backend.trim(count)


def test_rejected_tokens_leave_no_trace(kind: Any) -> None:
    """A step of one token after a step of many, as after a guess that was wrong."""
    backend = kind.make()
    most = backend.max_scored_tokens
    ids, junk = make_ids(40), make_ids(16, seed=2)
    backend.forward(ids[:10])
    for num_cached in range(10, 40):
        guess = [ids[num_cached], *junk][: 1 + num_cached % most]
        rows = backend.forward_scored(guess, num_scored=len(guess))
        backend.trim(len(guess) - 1)
        expected = kind.fresh(ids[: num_cached + 1])
        assert np.abs(rows[0] - expected).max() < kind.tolerance, num_cached
        assert backend.cached_tokens == num_cached + 1


@pytest.mark.parametrize("num_scored", [0, 4, 17])
def test_more_rows_than_tokens_or_than_are_made_are_refused(kind: Any, num_scored: int) -> None:
    backend = kind.make()
    backend.forward([1, 2])
    token_ids = make_ids(3 if num_scored < 17 else 20)
    with pytest.raises(ValueError, match=f"num_scored is {num_scored}; expected 1 to"):
        backend.forward_scored(token_ids, num_scored=num_scored)
    assert backend.cached_tokens == 2
    assert np.abs(backend.forward([3]) - kind.fresh([1, 2, 3])).max() < kind.tolerance


def test_scoring_beyond_the_context_changes_nothing(kind: Any) -> None:
    backend = kind.make()
    limit, most = backend.max_context_tokens, backend.max_scored_tokens
    ids = make_ids(limit)
    backend.forward(ids[: limit - most])
    with pytest.raises(ContextFullError):
        backend.forward_scored([*ids[limit - most :], 1], num_scored=most)
    assert backend.cached_tokens == limit - most
    rows = backend.forward_scored(ids[limit - most :], num_scored=most)
    assert np.abs(rows[-1] - kind.fresh(ids)).max() < kind.tolerance


# Snapshots.


def test_restored_cache_goes_on_bit_for_bit(kind: Any) -> None:
    """Not nearly the same, the same: whatever was done to the cache in between."""
    backend = kind.make()
    ids, junk = make_ids(40), make_ids(25, seed=2)
    backend.forward(ids[:20])
    for token_id in ids[20:30]:
        backend.forward([token_id])
    snapshot = backend.snapshot()
    expected = [backend.forward([token_id]) for token_id in ids[30:]]
    backend.trim(10)
    backend.forward(junk[:1])
    backend.restore(snapshot)
    assert backend.cached_tokens == 30
    assert snapshot.token_ids == tuple(ids[:30])
    again = [backend.forward([token_id]) for token_id in ids[30:]]
    if kind.name == "openvino-static":  # what it forgot it reads anew, as one prompt
        assert np.abs(np.stack(again) - np.stack(expected)).max() < kind.tolerance
    else:
        assert np.array_equal(again, expected)
    backend.reset()
    backend.forward(junk)
    backend.restore(snapshot)
    again = [backend.forward([token_id]) for token_id in ids[30:]]
    assert np.abs(np.stack(again) - np.stack(expected)).max() < kind.tolerance
    if snapshot.arrays:
        assert np.array_equal(again, expected)


def test_snapshot_goes_into_another_backend_of_its_kind(kind: Any) -> None:
    one, other = kind.make(), kind.make()
    ids = make_ids(40)
    one.forward(ids[:30])
    one.trim(5)
    one.forward(ids[25:35])
    snapshot = one.snapshot()
    expected = one.forward([ids[35]])
    one.close()
    other.forward([1, 2, 3])
    other.restore(snapshot)
    assert other.cached_tokens == 35
    logits = other.forward([ids[35]])
    assert np.abs(logits - expected).max() < kind.tolerance
    if snapshot.arrays:
        assert np.array_equal(logits, expected)


def test_snapshot_is_a_copy_that_nobody_changes(kind: Any) -> None:
    backend = kind.make()
    ids = make_ids(40)
    backend.forward(ids[:30])
    snapshot = backend.snapshot()
    kept = [array.copy() for array in snapshot.arrays]
    assert backend.cached_tokens == 30
    backend.trim(20)
    backend.forward(ids[:20])
    backend.restore(snapshot)
    backend.trim(20)
    backend.forward(ids[:20])
    backend.reset()
    assert snapshot.token_ids == tuple(ids[:30])
    for array, before in zip(snapshot.arrays, kept, strict=True):
        assert np.array_equal(array, before)
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_snapshot_of_nothing(kind: Any) -> None:
    backend = kind.make()
    snapshot = backend.snapshot()
    assert (snapshot.token_ids, snapshot.arrays) == ((), ())
    backend.forward(make_ids(20))
    backend.restore(snapshot)
    assert backend.cached_tokens == 0
    assert np.abs(backend.forward([7, 8]) - kind.fresh([7, 8])).max() < kind.tolerance


def test_snapshot_that_does_not_fit_changes_nothing(kind: Any) -> None:
    backend = kind.make()
    ids = make_ids(20)  # more than a block
    backend.forward(ids)
    snapshot = backend.snapshot()
    changes: list[dict[str, object]] = [
        {"kind": "another"},
        {"vocab_size": VOCAB_SIZE + 1},
    ]
    if snapshot.arrays:
        last = snapshot.arrays[-1]
        changes += [
            {"arrays": snapshot.arrays[:-1]},
            {"arrays": (*snapshot.arrays[:-1], last[:, :, :-1])},
            {"arrays": (*snapshot.arrays[:-1], last[:, :1])},
            {"arrays": (*snapshot.arrays[:-1], last[..., :-1])},
            {"arrays": (*snapshot.arrays[:-1], last.astype(np.float64))},
            {"arrays": ()},
            {"token_ids": (1, 2)},
            {"token_ids": ()},
        ]
    for change in changes:
        with pytest.raises(UsageError, match="does not fit this model") as caught:
            backend.restore(dataclasses.replace(snapshot, **change))
        assert "token_ids" in caught.value.fix
        assert backend.cached_tokens == 20, change
    assert np.abs(backend.forward([4]) - kind.fresh([*ids, 4])).max() < kind.tolerance


def test_snapshot_that_is_too_long_changes_nothing(kind: Any) -> None:
    backend = kind.make()
    backend.forward([1, 2, 3])
    snapshot = backend.snapshot()
    long = dataclasses.replace(snapshot, token_ids=tuple(make_ids(backend.max_context_tokens + 1)))
    with pytest.raises(ContextFullError):
        backend.restore(long)
    assert np.abs(backend.forward([4]) - kind.fresh([1, 2, 3, 4])).max() < kind.tolerance


# Failures within the engine.


@pytest.mark.trust("T-GEN-09")
@pytest.mark.parametrize("poison", [np.nan, np.inf], ids=["nan", "infinite"])
def test_logits_that_are_no_numbers_are_refused(poisoned_kind: Any, poison: float) -> None:
    backend = poisoned_kind.make_poisoned(poison)
    with pytest.raises(ParityError, match="of 64 logits that are no finite numbers") as caught:
        backend.forward([1, 2])
    assert "qwen-edge verify" in caught.value.fix
    assert backend.cached_tokens == 0
    most = min(2, backend.max_scored_tokens)
    with pytest.raises(ParityError, match=f"of {64 * most} logits that are no finite numbers"):
        backend.forward_scored([1, 2], num_scored=most)
    assert backend.cached_tokens == 0


@pytest.mark.parametrize("is_scored", [False, True], ids=["forward", "scored"])
@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error_type", [RuntimeError, KeyboardInterrupt], ids=["engine", "ctrl-c"])
def test_failure_within_the_engine_empties_the_cache(
    engine_kind: Any, error_type: type[BaseException], is_late: bool, is_scored: bool
) -> None:
    """Whether the engine appended before it failed is unknown; the next answer is right."""
    backend = engine_kind.make()
    ids = make_ids(30)
    backend.forward(ids[:20])
    error = error_type(engine_kind.engine_error)
    engine_kind.break_engine(backend, error, is_late)
    expected = DeviceError if error_type is RuntimeError else KeyboardInterrupt
    rows = min(backend.max_scored_tokens, 4)
    scored = functools.partial(backend.forward_scored, num_scored=rows)
    call = scored if is_scored else backend.forward
    with pytest.raises(expected) as caught:
        call(ids[20:])
    if isinstance(caught.value, DeviceError):
        num_tokens = 20 + min(engine_kind.fed_at_once, 10)
        words = f"stopped at {num_tokens} tokens of context: CL_OUT_OF_RESOURCES."
        assert words in caught.value.problem
        assert caught.value.__cause__ is error
    assert backend.cached_tokens == 0
    assert np.abs(backend.forward(ids) - engine_kind.fresh(ids)).max() < engine_kind.tolerance
