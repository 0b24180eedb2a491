"""Warming up in the background: the first question waits, nothing else does."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from qwen_edge.errors import DeviceError, UsageError
from qwen_edge.runtime.backends.backend import Backend, CacheSnapshot, Logits
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.backends.warming import WarmingBackend

TIMEOUT_S = 10.0


class SlowBackend(FakeBackend):
    """A fake whose inference waits until it is released."""

    def __init__(self, *, fail_at_call: int | None = None) -> None:
        super().__init__([7], fail_at_call=fail_at_call)
        self.released = threading.Event()
        self.entered = threading.Event()

    def forward(self, token_ids: Sequence[int]) -> Logits:
        self.entered.set()
        assert self.released.wait(TIMEOUT_S)
        return super().forward(token_ids)


@pytest.fixture
def slow() -> Iterator[SlowBackend]:
    backend = SlowBackend()
    yield backend
    backend.released.set()


def join_warm_up() -> None:
    for thread in threading.enumerate():
        if thread.name == "qwen-edge-warm-up":
            thread.join(TIMEOUT_S)


def test_first_forward_waits_and_says_so(
    slow: SlowBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    warming: Backend = WarmingBackend(slow)
    assert slow.entered.wait(TIMEOUT_S)
    threading.Timer(0.02, slow.released.set).start()
    assert np.argmax(warming.forward([1])) == 7
    assert slow.cached_ids == [1]
    assert "Waiting for the model to warm up" in caplog.text
    assert "Warmed up in" in caplog.text


def test_prompt_and_single_token_are_both_warmed(slow: SlowBackend) -> None:
    slow.released.set()
    warming = WarmingBackend(slow)
    join_warm_up()
    assert warming.is_warm
    assert slow.num_forward_calls == 2
    assert slow.num_forward_tokens == 17
    assert warming.cached_tokens == 0


def test_cache_counts_as_empty_and_nothing_else_waits(slow: SlowBackend) -> None:
    warming = WarmingBackend(slow)
    assert slow.entered.wait(TIMEOUT_S)
    slow.cached_ids.append(0)  # as in the middle of the warm-up's own tokens
    assert not warming.is_warm
    assert warming.cached_tokens == 0
    assert warming.vocab_size == slow.vocab_size
    assert warming.max_context_tokens == slow.max_context_tokens
    warming.reset()
    warming.trim(0)
    with pytest.raises(ValueError, match="expected 0 to 0"):
        warming.trim(1)


def test_after_warm_up_everything_is_passed_on(slow: SlowBackend) -> None:
    slow.released.set()
    warming = WarmingBackend(slow)
    warming.forward([1, 2, 3])
    warming.trim(1)
    assert warming.cached_tokens == 2
    warming.reset()
    assert slow.cached_ids == []
    warming.close()
    assert slow.is_closed
    with pytest.raises(UsageError, match="closed"):
        warming.forward([1])


def test_snapshots_wait_for_the_warm_up_and_are_the_backend_s_own(slow: SlowBackend) -> None:
    """The tokens of the warm-up are in the cache until it is done."""
    warming = WarmingBackend(slow)
    assert slow.entered.wait(TIMEOUT_S)
    threading.Timer(0.02, slow.released.set).start()
    assert warming.snapshot().token_ids == ()
    assert warming.is_warm
    warming.forward([1, 2])
    snapshot = warming.snapshot()
    warming.reset()
    warming.restore(snapshot)
    assert slow.cached_ids == [1, 2]


def test_snapshot_may_be_restored_before_the_first_question(slow: SlowBackend) -> None:
    snapshot = CacheSnapshot("fake", slow.vocab_size, (5, 6))
    warming = WarmingBackend(slow)
    threading.Timer(0.02, slow.released.set).start()
    warming.restore(snapshot)
    assert warming.cached_tokens == 2
    assert slow.cached_ids == [5, 6]


def test_snapshots_of_what_was_closed_while_warming_up_are_refused(slow: SlowBackend) -> None:
    warming = WarmingBackend(slow)
    warming.close()
    with pytest.raises(UsageError, match="closed"):
        warming.snapshot()
    with pytest.raises(UsageError, match="closed"):
        warming.restore(CacheSnapshot("fake", slow.vocab_size, ()))


def test_close_does_not_wait_and_the_engine_is_released_afterwards(slow: SlowBackend) -> None:
    warming = WarmingBackend(slow)
    assert slow.entered.wait(TIMEOUT_S)
    warming.close()
    warming.close()
    assert not slow.is_closed
    with pytest.raises(UsageError, match="closed"):
        warming.forward([1])
    slow.released.set()
    join_warm_up()
    assert slow.is_closed
    assert slow.num_forward_calls == 1


def test_failed_warm_up_is_logged_and_the_model_can_still_be_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = SlowBackend(fail_at_call=1)
    backend.released.set()
    warming = WarmingBackend(backend)
    assert np.argmax(warming.forward([1])) == 7
    assert "could not be warmed up: The fake device refused" in caplog.text


def test_unexpected_failure_of_a_later_call_reaches_the_caller() -> None:
    backend = SlowBackend(fail_at_call=3)
    backend.released.set()
    warming = WarmingBackend(backend)
    join_warm_up()  # its second call is left out when somebody waits already
    with pytest.raises(DeviceError):
        warming.forward([1])


def test_context_of_one_token_is_warmed_with_one() -> None:
    backend = FakeBackend([1], max_context_tokens=1)
    WarmingBackend(backend).wait_until_warm()
    assert backend.num_forward_tokens == 1


def test_scoring_waits_for_the_warm_up_and_gives_the_backend_s_rows(slow: SlowBackend) -> None:
    warming = WarmingBackend(slow)
    assert warming.max_scored_tokens == slow.max_scored_tokens
    threading.Timer(0.02, slow.released.set).start()
    assert warming.forward_scored([1, 2, 3], num_scored=2).shape == (2, slow.vocab_size)
    assert warming.is_warm
    assert slow.cached_ids == [1, 2, 3]
    warming.close()
    with pytest.raises(UsageError, match="closed"):
        warming.forward_scored([1], num_scored=1)


def test_calls_of_every_size_are_made_once_and_leave_nothing() -> None:
    backend = FakeBackend([1], max_context_tokens=40)
    warming = WarmingBackend(backend, call_sizes=(1, 2, 4, 16, 99))
    join_warm_up()
    assert warming.is_warm
    assert backend.num_forward_tokens == 16 + 1 + 1 + 2 + 4 + 16  # 99 are more than it scores
    assert backend.cached_ids == []


def test_who_waits_is_not_kept_waiting_for_calls_of_every_size(slow: SlowBackend) -> None:
    warming = WarmingBackend(slow, call_sizes=(2, 4, 16))
    assert slow.entered.wait(TIMEOUT_S)
    threading.Timer(0.3, slow.released.set).start()
    warming.wait_until_warm()
    assert slow.num_forward_tokens == 16
    assert warming.cached_tokens == 0
