"""The prefix cache: what is kept, trimmed and reset, and that it tells the truth.

The last test is the law of the whole: whatever sessions do, the cache never changes an answer.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.events import Event
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE, make_fake_tokenizer
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.prefix_cache import PrefixCache
from qwen_edge.runtime.session import Session

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("first", "second", "num_kept"),
    [
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 2, 9], 2),
        ([1, 2, 3], [1, 2], 1),
        ([1, 2, 3], [1, 2, 3], 2),
        ([1, 2, 3], [9], 0),
        ([1], [1], 0),
    ],
)
def test_the_longest_common_beginning_is_kept(
    first: list[int], second: list[int], num_kept: int
) -> None:
    backend = FakeBackend([0])
    cache = PrefixCache(backend)
    assert cache.begin(first) == 0
    backend.forward(first)
    assert cache.begin(second) == num_kept
    assert backend.cached_ids == second[:num_kept]


@given(prompts=st.lists(st.tuples(IDS, st.integers(0, 3)), max_size=8))
def test_the_record_is_what_the_backend_was_fed(prompts: list[tuple[list[int], int]]) -> None:
    backend = FakeBackend([0])
    cache = PrefixCache(backend)
    for prompt, num_new in prompts:
        backend.forward(prompt[cache.begin(prompt) :])
        for index in range(num_new):
            cache.append(index)
            if index + 1 < num_new:
                backend.forward([index])
        assert list(cache.cached_ids) == backend.cached_ids


def test_a_device_error_empties_the_record() -> None:
    backend = FakeBackend([0], fail_at_call=2)
    cache = PrefixCache(backend)
    backend.forward([1, 2][cache.begin([1, 2]) :])
    with pytest.raises(DeviceError):
        backend.forward([1, 2, 3][cache.begin([1, 2, 3]) :])
    assert cache.cached_ids == ()
    assert cache.begin([1, 2, 3]) == 0


TOKENIZER = make_fake_tokenizer()


def scattered(token_ids: Sequence[int]) -> int:
    """Say a letter, sometimes the end, that depends on every id before it."""
    value = zlib.crc32(np.array(token_ids, np.int32).tobytes())
    return 258 if value % 11 == 0 else 97 + value % 26


def make_model(**options: Any) -> Model:
    """Return a model whose answer depends on every id of the prompt."""
    backend = FakeBackend(scattered, vocab_size=300)
    return Model(backend, TOKENIZER, CHAT_TEMPLATE, Model.fake(["x"]).manifest, **options)


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if event.kind == "answer")


Step = tuple[str, int, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "close", "cancel", "edit", "other", "fail"]),
        st.integers(0, 6),
        st.sampled_from(["", "a", "aa", "ab", "b", "<|im_end|>", "ö"]),
    ),
    max_size=7,
)


def check_laws(session: Session, backend: FakeBackend) -> None:
    """The record is the truth, and it is the beginning of the conversation."""
    cached = session.cached_ids
    assert list(cached) == backend.cached_ids[: len(cached)]
    assert cached == session.conversation_ids[: len(cached)]


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_the_cache_never_changes_an_answer(steps: list[Step]) -> None:
    """After any sequence of asking, cancelling, editing, failing and other sessions.

    Every complete answer equals that of a fresh model to the same messages, and at every
    event the ids that the session counts as cached are those that the backend was fed.
    """
    model = make_model(prefill_chunk_tokens=5)
    backend = model.backend
    assert isinstance(backend, FakeBackend)
    chat, other = model.session(system="s"), model.session(system="st")
    for action, number, text in steps:
        session = other if action == "other" else chat
        prompt: Any = text
        if action == "edit":
            kept = [m for m in session.messages if m["role"] != "system"][: number - number % 2]
            prompt = [*kept, {"role": "user", "content": text}]
        before = session.messages
        if action == "fail":
            backend._fail_at_call = backend.num_forward_calls + 1 + number
        events: list[Event] = []
        stream = session.stream(prompt, max_new_tokens=8)
        try:
            for event in stream:
                events.append(event)
                check_laws(session, backend)
                if action == "close" and len(events) > number:
                    stream.close()
                    break
                if action == "cancel" and len(events) > number:
                    session.cancel()
        except DeviceError:
            assert session.messages == before
            assert session.cached_ids == ()
            continue
        check_laws(session, backend)
        assert list(session.cached_ids) == backend.cached_ids
        if events and events[-1].finish_reason in ("stop", "length"):
            fresh = make_model().session()
            asked = [dict(message) for message in session.messages[:-1]]
            assert fresh.ask(asked, max_new_tokens=8).text == text_of(events)
            assert session.messages[-1]["content"] == text_of(events)
        elif text_of(events):
            assert session.messages[-1]["content"] == text_of(events)
        else:
            assert session.messages == before
