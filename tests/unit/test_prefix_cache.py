"""The prefix cache: what is kept, trimmed and reset, and that it tells the truth.

The law of the whole: whatever sessions do, the cache never changes an answer.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import DeviceError, EdgeError, ResourceError, UsageError
from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.events import Event
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE, make_fake_tokenizer
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.parking import Parking
from qwen_edge.runtime.prefix_cache import MIN_PARKED_TOKENS, PrefixCache
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


# Conversations put aside.


class CopyingBackend(FakeBackend):
    """A fake whose copies have arrays, as those of engines do, and that counts them."""

    num_copies = 0
    num_restores = 0
    error: EdgeError | None = None
    restore_error: EdgeError | None = None

    def snapshot(self) -> CacheSnapshot:
        if self.error is not None:
            raise self.error
        self.num_copies += 1
        rows = np.array(self.cached_ids, np.float32).reshape(1, 1, -1, 1)
        return dataclasses.replace(super().snapshot(), arrays=(rows,) if rows.size else ())

    def restore(self, snapshot: CacheSnapshot) -> None:
        if self.restore_error is not None:
            raise self.restore_error
        self.num_restores += 1
        assert [ids.ravel().tolist() for ids in snapshot.arrays] == [list(snapshot.token_ids)]
        super().restore(snapshot)


def numbers(start: int, count: int) -> list[int]:
    return [(start + index * 7) % 250 for index in range(count)]


def ask(cache: PrefixCache, backend: FakeBackend, prompt: list[int], owner: object) -> int:
    """Feed a prompt as a session does; return how many ids had not to be."""
    num_kept = cache.begin(prompt, owner=owner)
    backend.forward(prompt[num_kept:])
    assert list(cache.cached_ids) == backend.cached_ids == prompt
    return num_kept


def test_conversations_that_take_turns_are_not_computed_again() -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    one, two = numbers(1, 300), numbers(2, 400)
    assert ask(cache, backend, one, "one") == 0
    assert ask(cache, backend, two, "two") == 0
    assert ask(cache, backend, [*one, 5], "one") == 300
    assert ask(cache, backend, [*two, 6], "two") == 400
    assert ask(cache, backend, [*one, 5, 6], "one") == 301
    assert (backend.num_copies, backend.num_restores) == (4, 3)


def test_what_a_conversation_drops_of_its_own_is_not_put_aside() -> None:
    """Reasoning is dropped at every turn, and nobody asks for it again."""
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    ask(cache, backend, [1, *numbers(1, 900)], "one")
    ask(cache, backend, [1, *numbers(2, 300)], "one")
    assert backend.num_copies == 0


def test_little_is_computed_again_rather_than_put_aside() -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    ask(cache, backend, numbers(1, MIN_PARKED_TOKENS - 1), "one")
    ask(cache, backend, numbers(2, 5), "two")
    assert backend.num_copies == 0


def test_same_conversation_is_not_copied_twice() -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    one = numbers(1, 300)
    for _ in range(3):
        ask(cache, backend, one, "one")
        ask(cache, backend, [2, 3], "two")
    assert backend.num_copies == 1


def test_copy_is_cut_to_what_is_common() -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    one = numbers(1, 400)
    ask(cache, backend, one, "one")
    ask(cache, backend, [2], "two")
    assert ask(cache, backend, [*one[:300], 9], "one") == 300


def test_gain_that_is_not_worth_it_is_left() -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    one = numbers(1, 700)
    ask(cache, backend, one, "one")
    ask(cache, backend, [2], "two")
    assert ask(cache, backend, [*one[:650], 2], "two") == 650
    assert ask(cache, backend, one, "one") == 650  # 49 more would be in the copy
    assert backend.num_restores == 1


@pytest.mark.parametrize("kind", [DeviceError, ResourceError], ids=["device", "memory"])
def test_cache_that_cannot_be_copied_costs_computing_only(kind: type[EdgeError]) -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    one, two = numbers(1, 300), numbers(2, 300)
    backend.error = kind("No.", "")
    for _ in range(2):
        ask(cache, backend, one, "one")
        assert ask(cache, backend, two, "two") == 0
    backend.error = None
    ask(cache, backend, one, "one")
    assert backend.num_copies == 0


def test_copy_that_does_not_come_back_is_computed_and_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    one = numbers(1, 300)
    ask(cache, backend, one, "one")
    ask(cache, backend, [2, 3], "two")
    backend.restore_error = UsageError("It does not fit.", "")
    assert ask(cache, backend, one, "one") == 0
    assert "computed again: It does not fit." in caplog.text
    backend.restore_error = None
    ask(cache, backend, [2, 3], "two")
    assert ask(cache, backend, [*one, 4], "one") == 300
    assert backend.num_copies == 2


def test_backend_that_only_copies_ids_is_not_asked_again() -> None:
    """Coming back would be computing anew, as on an NPU."""
    backend = FakeBackend([0])
    cache = PrefixCache(backend)
    ask(cache, backend, numbers(1, 300), "one")
    ask(cache, backend, numbers(2, 300), "two")
    assert ask(cache, backend, numbers(1, 301), "one") == 0


def test_pinned_beginning_is_read_when_it_is_needed() -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    warm = numbers(1, 200)
    rows = np.array(warm, np.float32).reshape(1, 1, -1, 1)
    read = [0]

    def read_it() -> CacheSnapshot:
        read[0] += 1
        return CacheSnapshot("fake", 256, tuple(warm), (rows,))

    cache.pin(warm, read_it)
    assert ask(cache, backend, [9, 9], "one") == 0
    assert read == [0]
    assert ask(cache, backend, [*warm, 5, 6], "one") == 200
    assert ask(cache, backend, [*warm, 7], "two") == 200
    assert read == [1]
    cache.clear_parking()
    ask(cache, backend, [9, 9], "one")
    assert ask(cache, backend, [*warm, 7], "two") == 0


def test_snapshot_is_of_the_conversation_that_is_asked_for() -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    one = numbers(1, 300)
    ask(cache, backend, one, "one")
    assert cache.snapshot(one).token_ids == tuple(one)
    assert cache.snapshot([*one[:100], 3]).token_ids == tuple(one[:100])
    assert cache.snapshot([9]).token_ids == ()
    ask(cache, backend, [2, 3], "two")
    assert cache.snapshot(one).token_ids == tuple(one)
    assert cache.snapshot([2, 3]).token_ids == (2, 3)


def test_restored_snapshot_is_gone_on_with() -> None:
    backend = CopyingBackend([0])
    cache = PrefixCache(backend)
    one, two = numbers(1, 300), numbers(2, 300)
    ask(cache, backend, one, "one")
    snapshot = cache.snapshot(one)
    ask(cache, backend, two, "two")
    cache.restore(snapshot, owner="one")
    assert list(cache.cached_ids) == one
    assert ask(cache, backend, [*one, 5], "one") == 300
    assert ask(cache, backend, [*two, 5], "two") == 300
    backend.restore_error = UsageError("It does not fit.", "")
    before = cache.cached_ids
    with pytest.raises(UsageError, match="It does not fit"):
        cache.restore(snapshot)
    assert cache.cached_ids == before


TURNS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 400), st.integers(1, 300)), max_size=8
)


@settings(max_examples=30, deadline=None)
@given(turns=TURNS, budget=st.sampled_from([0, 1500, 1 << 20]))
def test_law_of_parking(turns: list[tuple[str, int, int]], budget: int) -> None:
    """Whatever is put aside and comes back: the backend holds what it was asked to hold."""
    backend = CopyingBackend([0])
    cache = PrefixCache(backend, Parking(budget))
    said: dict[str, list[int]] = {name: [ord(name)] for name in "abc"}
    for number, (name, num_kept, num_new) in enumerate(turns):
        said[name] = [*said[name][:num_kept], *numbers(number, num_new)]
        ask(cache, backend, said[name], name)


class Moving:
    """Two fakes of which one is in use."""

    def __init__(self) -> None:
        self.fakes = {"A": CopyingBackend([0]), "B": CopyingBackend([0])}
        self.place = "A"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fakes[self.place], name)

    def move(self, cache: PrefixCache, place: str, places: Sequence[str] = ("A", "B")) -> None:
        self.place = place
        cache.move(place, self.fakes[place].cached_ids, places)


def test_each_device_has_a_record_and_a_parking_of_its_own() -> None:
    backend = Moving()
    cache = PrefixCache(backend, place="A")  # type: ignore[arg-type]
    cache.begin([1, 2, 3], owner="one")
    backend.forward([1, 2, 3])
    cache.pin([1, 2, 3, 4], lambda: pytest.fail("it is of the other device"))
    backend.move(cache, "B")
    assert cache.cached_ids == ()
    assert cache.begin([1, 2, 3, 4, 5] * 5, owner="one") == 0
    backend.forward([1, 2, 3, 4, 5] * 5)
    backend.move(cache, "A")
    assert cache.cached_ids == (1, 2, 3)
    assert cache.begin([1, 2, 9], owner="one") == 2
    backend.move(cache, "B")
    assert len(cache.cached_ids) == 25


def test_who_left_something_on_a_device_is_not_known_when_it_is_gone_back_to() -> None:
    """It might be another's conversation, so it is put aside."""
    backend = Moving()
    cache = PrefixCache(backend, place="A")  # type: ignore[arg-type]
    one = numbers(1, 300)
    for place, ids, owner in (("A", one, "one"), ("B", [2, 3], "two"), ("A", [4, 5], "two")):
        backend.move(cache, place)
        cache.begin(ids, owner=owner)
        backend.forward(ids)
    assert backend.fakes["A"].num_copies == 1
    assert cache.begin([*one, 9], owner="one") == 300


def test_what_was_put_aside_on_a_device_that_is_gone_is_let_go_of() -> None:
    backend = Moving()
    cache = PrefixCache(backend, place="A")  # type: ignore[arg-type]
    gone = pytest.raises(pytest.fail.Exception, match="read")
    cache.pin([1] * 40, lambda: pytest.fail("read"))
    with gone:
        cache.begin([1] * 50)
    backend.move(cache, "B", places=["B"])
    backend.move(cache, "A")
    assert cache.begin([1] * 50) == 0
