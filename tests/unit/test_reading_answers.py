"""Readers of an answer that fail, leave, or are slow; the next answer is as ever."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.batch_model import BatchModel
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE, make_fake_tokenizer, make_script
from qwen_edge.runtime.model import Model

TOKENIZER = make_fake_tokenizer()
ANSWER = "Hello there."


class ReaderError(Exception):
    """A reader's own."""


def make_batch_model() -> BatchModel:
    backend = FakeBackend(make_script(TOKENIZER, [ANSWER]), vocab_size=TOKENIZER.vocab_size)
    return BatchModel(
        SequentialBatchBackend(backend, max_sequences=3),
        TOKENIZER,
        CHAT_TEMPLATE,
        Model.fake([ANSWER]).manifest,
    )


def make_stream(kind: str) -> tuple[Callable[[], Any], Callable[[], str]]:
    """Return what begins a stream, and what asks for another answer."""
    if kind == "session":
        session = Model.fake([ANSWER]).session()
        return lambda: session.stream("Hi"), lambda: session.ask("Hi").text
    model = make_batch_model()
    return lambda: model.stream("Hi"), lambda: model.ask("Hi").text


@pytest.mark.trust("T-GEN-03")
@pytest.mark.parametrize("num_events", [0, 1, 5])
@pytest.mark.parametrize("kind", ["session", "batch"])
def test_a_reader_that_fails_gets_its_error_once(kind: str, num_events: int) -> None:
    begin, ask = make_stream(kind)

    def read() -> None:
        for number, _ in enumerate(begin()):
            if number == num_events:
                raise ReaderError

    with pytest.raises(ReaderError):
        read()
    assert ask() == ANSWER


@pytest.mark.trust("T-GEN-03")
@pytest.mark.parametrize("kind", ["session", "batch"])
def test_a_reader_that_has_enough_and_one_that_is_slow(kind: str) -> None:
    begin, ask = make_stream(kind)
    for _ in begin():
        break
    assert ask() == ANSWER
    texts = []
    for event in begin():
        time.sleep(0.005)
        texts.append(event.text)
    assert "".join(texts) == ANSWER


@pytest.mark.trust("T-GEN-03")
def test_a_listener_that_fails_keeps_nobody_from_an_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It had ended the thread that makes steps, and every answer with it."""
    model = make_batch_model()

    def fail() -> None:
        raise ReaderError

    thread = threading.Thread(target=model.batcher.run)
    thread.start()
    try:
        done = threading.Event()
        bad = model.open_answer("Hi", on_change=fail)
        good = model.open_answer("Hi", on_change=done.set)
        texts = {id(bad): "", id(good): ""}
        deadline = time.monotonic() + 10
        while not (bad.is_finished and good.is_finished):
            assert time.monotonic() < deadline
            done.wait(0.05)
            for feed in (bad, good):
                texts[id(feed)] += "".join(event.text for event in feed.read())
        assert set(texts.values()) == {ANSWER}
        assert "on_change of an answer failed" in caplog.text
    finally:
        model.close()
        thread.join(10)
    assert not thread.is_alive()
