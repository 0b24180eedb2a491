"""The OpenVINO backend on a tiny random decoder: forgetting is exact, whatever came before.

The law: after any sequence of `forward`, `trim` and `reset` the logits are those of a fresh
cache fed the same tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.errors import ContextFullError, DeviceError, UsageError
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.engine import import_openvino

VOCAB_SIZE = 64
MAX_CONTEXT_TOKENS = 80
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
EXACT_TOLERANCE = 1e-4  # sums of other order; logits here are about 3

Fresh = Callable[[Sequence[int]], npt.NDArray[np.float32]]
MakeDecoder = Callable[..., Any]
Obey = Callable[[Any, list[tuple[str, int]], float], None]


def make_backend(compiled: Any, **options: int) -> OpenVinoBackend:
    chosen = {"max_context_tokens": MAX_CONTEXT_TOKENS, "prefill_chunk_tokens": 16} | options
    return OpenVinoBackend(compiled, device="CPU", **chosen)


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(1, 4)),
        st.tuples(st.just("feed"), st.integers(5, 60)),
        st.tuples(st.just("trim"), st.integers(0, 12)),
        st.tuples(st.just("trim share"), st.integers(0, 4)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    min_size=2,
    max_size=16,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=actions)
def test_law_of_the_growing_cache(compiled: Any, obey: Obey, steps: list[tuple[str, int]]) -> None:
    obey(make_backend(compiled, min_holes_to_compact=4), steps, EXACT_TOLERANCE)


def test_holes_do_not_change_a_bit(compiled: Any) -> None:
    """Forgotten tokens: not nearly the same, the same, when the calls are of equal sizes."""
    ids, junk = make_ids(30), make_ids(20, seed=2)
    never, forgot = make_backend(compiled), make_backend(compiled)
    never.forward(ids[:20])
    forgot.forward(ids[:20])
    forgot.forward(junk[:16])
    forgot.trim(16)
    assert forgot.num_holes == 16
    assert np.array_equal(never.forward(ids[20:]), forgot.forward(ids[20:]))


def test_holes_do_not_change_a_bit_with_the_engine_s_own_precisions(
    make_decoder: MakeDecoder,
) -> None:
    """The default cache is u8, which holes do not touch (rewriting it would)."""
    loose = compile_model(make_decoder(), "CPU", {})
    ids, junk = make_ids(30), make_ids(20, seed=2)
    never, forgot = make_backend(loose), make_backend(loose)
    never.forward(ids[:20])
    forgot.forward(ids[:20])
    forgot.forward(junk)
    forgot.trim(20)
    for token_id in ids[20:]:
        assert np.array_equal(never.forward([token_id]), forgot.forward([token_id]))


def test_cache_is_rewritten_when_most_of_it_is_holes(compiled: Any, fresh: Fresh) -> None:
    backend = make_backend(compiled, min_holes_to_compact=8)
    ids = make_ids(40)
    backend.forward(ids)
    backend.trim(30)
    assert (backend.num_holes, backend.num_compactions) == (30, 0)
    logits = backend.forward([1, 2])
    assert (backend.num_holes, backend.num_compactions) == (0, 1)
    assert np.abs(logits - fresh([*ids[:10], 1, 2])).max() < EXACT_TOLERANCE


def test_few_holes_are_left_until_the_cache_is_full(compiled: Any, fresh: Fresh) -> None:
    backend = make_backend(compiled)
    ids = make_ids(MAX_CONTEXT_TOKENS)
    backend.forward(ids[:70])
    backend.trim(5)
    backend.forward(ids[65:75])
    assert (backend.num_holes, backend.num_compactions) == (5, 0)
    logits = backend.forward(ids[75:])
    assert (backend.num_holes, backend.num_compactions) == (0, 1)
    assert backend.cached_tokens == backend.max_context_tokens
    assert np.abs(logits - fresh(ids)).max() < EXACT_TOLERANCE


def test_cache_that_cannot_be_rewritten_is_read_again(
    compiled: Any, fresh: Fresh, caplog: pytest.LogCaptureFixture
) -> None:
    """A plugin may keep its cache in a form of its own; nobody promises rows to us."""

    class OddVariable:
        state = import_openvino().Tensor(np.zeros((3, 5), dtype=np.float32))

    class OddRequest:
        def __init__(self, request: Any) -> None:
            self._request = request

        def __getattr__(self, name: str) -> Any:
            return getattr(self._request, name)

        def query_state(self) -> list[OddVariable]:
            return [OddVariable()]

    caplog.set_level("INFO")
    backend = make_backend(compiled, min_holes_to_compact=8)
    inner: Any = backend._request
    inner._request = OddRequest(inner._request)
    ids = make_ids(40)
    backend.forward(ids)
    backend.trim(20)
    logits = backend.forward([1])
    assert backend.num_holes == 20
    backend.trim(1)
    logits = backend.forward([1, 2])
    assert (backend.num_holes, backend.num_compactions) == (0, 1)
    assert np.abs(logits - fresh([*ids[:20], 1, 2])).max() < EXACT_TOLERANCE
    assert "Reading 20 tokens again" in caplog.text


def test_logits_belong_to_the_caller(compiled: Any) -> None:
    backend = make_backend(compiled)
    first = backend.forward([1, 2, 3])
    kept = first.copy()
    second = backend.forward([4])
    assert first.dtype == np.float32
    assert first.shape == (VOCAB_SIZE,)
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_uncut_head_gives_the_same_logits(compiled: Any, make_decoder: MakeDecoder) -> None:
    whole = make_backend(compile_model(make_decoder(), "CPU", EXACT))
    ids = make_ids(40)
    assert np.abs(whole.forward(ids) - make_backend(compiled).forward(ids)).max() < EXACT_TOLERANCE


def test_full_context_names_the_numbers_and_changes_nothing(compiled: Any, fresh: Fresh) -> None:
    backend = make_backend(compiled)
    ids = make_ids(MAX_CONTEXT_TOKENS + 1)
    backend.forward(ids[:70])
    with pytest.raises(ContextFullError, match="needs 81 tokens, but the context holds 80"):
        backend.forward(ids[70:])
    assert backend.cached_tokens == 70
    assert np.abs(backend.forward(ids[70:80]) - fresh(ids[:80])).max() < EXACT_TOLERANCE


def test_ids_outside_the_vocabulary_never_reach_the_engine(compiled: Any) -> None:
    """The engine reads past its table for them without a word."""
    backend = make_backend(compiled)
    for token_ids in ([], [VOCAB_SIZE], [1, -1]):
        with pytest.raises(ValueError, match="token_ids"):
            backend.forward(token_ids)
    assert backend.cached_tokens == 0


def test_closed_backend_refuses_and_closes_twice(compiled: Any) -> None:
    backend = make_backend(compiled)
    backend.forward([1])
    backend.close()
    backend.close()
    assert backend.cached_tokens == 0
    with pytest.raises(UsageError, match="The model is closed"):
        backend.forward([1])


def test_trim_beyond_the_cache_is_refused(compiled: Any) -> None:
    backend = make_backend(compiled)
    backend.forward([1, 2])
    with pytest.raises(ValueError, match="expected 0 to 2"):
        backend.trim(3)


def test_refusal_of_the_compiler_keeps_its_words(make_decoder: MakeDecoder) -> None:
    with pytest.raises(DeviceError) as caught:
        compile_model(make_decoder(), "CPU", {"NO_SUCH_PROPERTY": "1"})
    assert "Device 'CPU' refused the model" in caught.value.problem
    assert "Unsupported property NO_SUCH_PROPERTY by CPU plugin" in caught.value.problem
    assert isinstance(caught.value.__cause__, RuntimeError)
