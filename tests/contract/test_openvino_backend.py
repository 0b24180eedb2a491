"""What is special to the OpenVINO backend: holes in its cache, rewriting it, and the compiler.

What it promises as every backend does is in `test_backends.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

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


def make_backend(compiled: Any, **options: int) -> OpenVinoBackend:
    chosen = {"max_context_tokens": MAX_CONTEXT_TOKENS, "prefill_chunk_tokens": 16} | options
    return OpenVinoBackend(compiled, device="CPU", **chosen)


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


class OddVariable:
    """A variable in a form of a plugin's own, which takes nothing."""

    name = "odd"
    shape = (3, 5)

    @property
    def state(self) -> Any:
        return import_openvino().Tensor(np.zeros(self.shape, dtype=np.float32))

    @state.setter
    def state(self, value: Any) -> None:
        raise RuntimeError("Exception from src/x.cpp:1:\nnot writable\n")


class OddRequest:
    """An infer request with one such variable."""

    def __init__(self, request: Any, *shape: int) -> None:
        self._request = request
        self._variable = OddVariable()
        self._variable.shape = shape or OddVariable.shape  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def query_state(self) -> list[OddVariable]:
        return [self._variable]


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
    """The default cache is u8, which holes do not touch (rewriting it would).

    Sixteen, since sums go on in whole vectors: other numbers move tokens to other lanes.
    """
    loose = compile_model(make_decoder(), "CPU", {})
    ids, junk = make_ids(30), make_ids(20, seed=2)
    never, forgot = make_backend(loose), make_backend(loose)
    never.forward(ids[:20])
    forgot.forward(ids[:20])
    forgot.forward(junk[:16])
    forgot.trim(16)
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


def test_snapshot_keeps_holes_and_precisions_to_the_bit(make_decoder: MakeDecoder) -> None:
    """The default cache is u8, and shows as f32: out and in again must change nothing."""
    loose = compile_model(make_decoder(), "CPU", {})
    ids, junk = make_ids(40), make_ids(20, seed=2)
    backend, other = make_backend(loose), make_backend(loose)
    backend.forward(ids[:20])
    backend.forward(junk)
    backend.trim(20)
    for token_id in ids[20:25]:
        backend.forward([token_id])
    snapshot = backend.snapshot()
    assert backend.num_holes == 20
    expected = [backend.forward([token_id]) for token_id in ids[25:]]
    other.restore(snapshot)
    assert (other.num_holes, other.cached_tokens) == (20, 25)
    assert np.array_equal([other.forward([token_id]) for token_id in ids[25:]], expected)
    backend.reset()
    backend.forward(junk)
    backend.restore(snapshot)
    assert np.array_equal([backend.forward([token_id]) for token_id in ids[25:]], expected)


def test_snapshot_with_holes_needs_room_for_all_its_rows(compiled: Any) -> None:
    backend, small = make_backend(compiled), make_backend(compiled, max_context_tokens=40)
    backend.forward(make_ids(60))
    backend.trim(40)
    with pytest.raises(ContextFullError, match="needs 60 tokens, but the context holds 40"):
        small.restore(backend.snapshot())


def test_cache_in_a_form_of_its_own_cannot_be_copied(compiled: Any) -> None:
    backend = make_backend(compiled)
    backend.forward([1, 2, 3])
    snapshot = backend.snapshot()
    inner: Any = backend._request
    inner._request = OddRequest(inner._request)
    with pytest.raises(DeviceError, match=r"did not let its cache be read: it has shape \(3, 5\)"):
        backend.snapshot()
    with pytest.raises(UsageError, match="does not fit this model"):
        backend.restore(snapshot)
    assert backend.cached_tokens == 3


def test_cache_that_is_not_taken_leaves_an_empty_one(compiled: Any, fresh: Fresh) -> None:
    backend = make_backend(compiled)
    backend.forward([1, 2, 3])
    snapshot = backend.snapshot()
    one = dataclasses.replace(snapshot, arrays=(snapshot.arrays[0], snapshot.arrays[1]))
    inner: Any = backend._request
    request = inner._request
    inner._request = OddRequest(request, 1, 2, 3, 16)
    with pytest.raises(DeviceError, match="did not take a cache: not writable"):
        backend.restore(one)
    assert backend.cached_tokens == 0
    inner._request = request
    assert np.abs(backend.forward([4, 5]) - fresh([4, 5])).max() < EXACT_TOLERANCE


def test_uncut_head_gives_the_same_logits(compiled: Any, make_decoder: MakeDecoder) -> None:
    whole = make_backend(compile_model(make_decoder(), "CPU", EXACT))
    ids = make_ids(40)
    assert np.abs(whole.forward(ids) - make_backend(compiled).forward(ids)).max() < EXACT_TOLERANCE


def test_refusal_of_the_compiler_keeps_its_words(make_decoder: MakeDecoder) -> None:
    with pytest.raises(DeviceError) as caught:
        compile_model(make_decoder(), "CPU", {"NO_SUCH_PROPERTY": "1"})
    assert "Device 'CPU' refused the model" in caught.value.problem
    assert "Unsupported property NO_SUCH_PROPERTY by CPU plugin" in caught.value.problem
    assert isinstance(caught.value.__cause__, RuntimeError)
