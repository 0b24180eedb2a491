"""The backend of fixed shapes, in the NPU plugin's own pipeline on the CPU.

What the plugin gets wrong without a word, and what is asked of it where prompts can be continued;
what the backend promises as every backend does is in `test_backends.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import ContextFullError, DeviceError
from qwen_edge.runtime.backends.openvino_static import StaticOpenVinoBackend
from qwen_edge.runtime.backends.prompt_reuse import PromptReuse

VOCAB_SIZE = 64
MAX_PROMPT_TOKENS = 64
STATIC_TOLERANCE = 0.02  # the plugin keeps its cache in f16

Fresh = Callable[[Sequence[int]], npt.NDArray[np.float32]]
MakeStatic = Callable[[], StaticOpenVinoBackend]


Calls = list[tuple[int, int]]


def spy(backend: StaticOpenVinoBackend, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return what the engine is asked for from now on: (tokens, first position) of each run."""
    calls: Calls = []
    run = backend._request.run

    def run_and_note(token_ids: Sequence[int], mask: Any, first_position: int) -> None:
        calls.append((len(token_ids), first_position))
        run(token_ids, mask, first_position)

    monkeypatch.setattr(backend._request, "run", run_and_note)
    return calls


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


def test_single_token_after_a_conversation(make_static: MakeStatic, fresh: Fresh) -> None:
    """The plugin takes a lone first token for the next of the old conversation, whose rows it
    then still sees: logits were 4 of 3 off."""
    backend = make_static()
    backend.forward(make_ids(40))
    backend.forward([1])
    backend.reset()
    assert np.abs(backend.forward([5]) - fresh([5])).max() < STATIC_TOLERANCE
    assert np.abs(backend.forward([6]) - fresh([5, 6])).max() < STATIC_TOLERANCE


def test_prompt_beyond_the_prompt_model(make_static: MakeStatic, fresh: Fresh) -> None:
    backend = make_static()
    ids = make_ids(MAX_PROMPT_TOKENS + 20)
    assert np.abs(backend.forward(ids) - fresh(ids)).max() < STATIC_TOLERANCE


def test_to_the_last_row(make_static: MakeStatic, fresh: Fresh) -> None:
    """One row of the compiled cache is for the token in the making: 127 of 128 can be kept."""
    backend = make_static()
    ids = make_ids(backend.max_context_tokens)
    assert backend.max_context_tokens == 127
    assert np.abs(backend.forward(ids) - fresh(ids)).max() < STATIC_TOLERANCE
    with pytest.raises(ContextFullError):
        backend.forward([1])
    backend.trim(3)
    again = [*ids[:-3], 1, 2, 3]
    assert np.abs(backend.forward([1, 2, 3]) - fresh(again)).max() < STATIC_TOLERANCE


def test_a_prompt_goes_on_from_whole_chunks_of_the_one_before(
    make_reusing: MakeStatic, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of an answer are computed anew: the plugin trusts those of prompts only."""
    backend = make_reusing()
    ids = make_ids(40)
    backend.forward(ids)
    for _ in range(3):  # an answer
        backend.forward(ids[:1])
    calls = spy(backend, monkeypatch)
    backend.trim(5)
    new = make_ids(20, seed=2)
    found = backend.forward(new)
    assert calls == [(26, 32)]
    assert np.abs(found - fresh([*ids[:38], *new])).max() < STATIC_TOLERANCE


def test_before_a_prompt_is_continued_its_rows_are_brought_over(
    make_reusing: MakeStatic, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after a prompt the plugin grants nothing; after one step it does."""
    backend = make_reusing()
    ids = make_ids(48)
    backend.forward(ids)
    calls = spy(backend, monkeypatch)
    backend.trim(8)
    new = make_ids(16, seed=2)
    found = backend.forward(new)
    assert calls == [(1, 48), (24, 32)]
    assert np.abs(found - fresh([*ids[:40], *new])).max() < STATIC_TOLERANCE


def test_few_tokens_are_stepped_and_many_read_as_a_prompt(
    make_reusing: MakeStatic, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of 16 costs as much as 1.6 steps, whether it is full or not."""
    backend = make_reusing()
    ids = make_ids(60)
    backend.forward(ids[:32])
    calls = spy(backend, monkeypatch)
    backend.forward(ids[32:33])
    backend.forward(ids[33:34])
    assert calls == [(1, 32), (1, 33)]
    calls.clear()
    found = backend.forward(ids[34:44])
    assert calls == [(12, 32)]
    assert np.abs(found - fresh(ids[:44])).max() < STATIC_TOLERANCE


def test_what_was_forgotten_whole_is_not_gone_on_from(
    make_reusing: MakeStatic, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `reset` the same prompt has the same logits, to the bit."""
    backend = make_reusing()
    ids = make_ids(40)
    first = backend.forward(ids)
    backend.forward([1])
    backend.reset()
    calls = spy(backend, monkeypatch)
    assert np.array_equal(backend.forward(ids), first)
    assert calls == [(40, 0)]
    backend.reset()
    assert np.abs(backend.forward([5]) - fresh([5])).max() < STATIC_TOLERANCE


def test_a_plugin_that_does_not_agree_is_a_device_that_stopped(
    make_reusing: MakeStatic, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_reusing()
    ids = make_ids(40)
    backend.forward(ids)

    def refuse(self: object, num_tokens: int) -> int:
        raise RuntimeError("Exception from src/x.cpp:1:\nexceeds the live token count\n")

    with monkeypatch.context() as patch:
        patch.setattr(PromptReuse, "propose", refuse)
        with pytest.raises(DeviceError, match=r"did not go on .*: exceeds the live token count"):
            backend.forward(make_ids(20, seed=2))
    assert backend.cached_tokens == 0
    assert np.abs(backend.forward(ids) - fresh(ids)).max() < STATIC_TOLERANCE
