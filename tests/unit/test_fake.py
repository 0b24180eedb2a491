"""The fake backend keeps every promise of the protocol."""

from collections.abc import Sequence

import numpy as np
import pytest

from qwen_edge.errors import ContextFullError, DeviceError, UsageError
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.backends.fake import FakeBackend


def test_script_is_said_in_order_and_its_end_for_ever() -> None:
    backend: Backend = FakeBackend([3, 1, 2], vocab_size=4)
    said = [int(np.argmax(backend.forward([0]))) for _ in range(5)]
    assert said == [3, 1, 2, 2, 2]
    assert backend.vocab_size == 4


def test_logits_are_float32_and_owned_by_the_caller() -> None:
    backend = FakeBackend([1], vocab_size=4)
    first = backend.forward([0, 2])
    assert first.dtype == np.float32
    assert first.shape == (4,)
    first[:] = 99
    assert backend.forward([0]).max() == 10.0


def test_function_sees_the_cached_ids_after_trim_and_reset() -> None:
    def add_up(cached_ids: Sequence[int]) -> int:
        return sum(cached_ids)

    backend = FakeBackend(add_up, vocab_size=32)
    assert np.argmax(backend.forward([1, 2, 3])) == 6
    backend.trim(2)
    backend.trim(0)
    assert np.argmax(backend.forward([4])) == 5
    backend.reset()
    assert np.argmax(backend.forward([7])) == 7
    assert backend.num_resets == 1


def test_calls_and_tokens_are_counted() -> None:
    backend = FakeBackend([1])
    backend.forward([1, 2, 3])
    backend.forward([4])
    assert (backend.num_forward_calls, backend.num_forward_tokens) == (2, 4)
    assert backend.cached_ids == [1, 2, 3, 4]


def test_full_context_changes_nothing() -> None:
    backend = FakeBackend([1], max_context_tokens=3)
    backend.forward([1, 2])
    with pytest.raises(ContextFullError):
        backend.forward([3, 4])
    assert backend.cached_tokens == 2
    assert backend.num_forward_calls == 1
    backend.forward([3])
    assert backend.cached_tokens == backend.max_context_tokens == 3


def test_told_failure_empties_the_cache_and_the_next_call_works() -> None:
    backend = FakeBackend([1], fail_at_call=2)
    backend.forward([1])
    with pytest.raises(DeviceError):
        backend.forward([2])
    assert backend.cached_tokens == 0
    backend.forward([3])
    assert backend.cached_ids == [3]


def test_closed_backend_refuses_and_closes_twice() -> None:
    backend = FakeBackend([1])
    backend.close()
    backend.close()
    assert backend.is_closed
    with pytest.raises(UsageError, match="closed"):
        backend.forward([1])


def test_snapshot_holds_the_ids_and_the_script_goes_on() -> None:
    backend = FakeBackend([3, 1, 2], vocab_size=4)
    backend.forward([0, 1])
    snapshot = backend.snapshot()
    assert (snapshot.kind, snapshot.token_ids, snapshot.arrays) == ("fake", (0, 1), ())
    backend.reset()
    backend.restore(snapshot)
    assert backend.cached_ids == [0, 1]
    assert np.argmax(backend.forward([2])) == 1


@pytest.mark.parametrize("script", [[], [256]], ids=["empty", "outside"])
def test_impossible_script_is_refused(script: list[int]) -> None:
    with pytest.raises(ValueError, match="token_ids"):
        FakeBackend(script)
