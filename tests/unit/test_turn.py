"""A turn: events carry every id once, stop strings cut the answer only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.decoding.picker import NewToken
from qwen_edge.runtime.events import Event, Timings
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.turn import Stopwatch, TurnText, collect_answer, make_splitter

TEXT = st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", "stop", "st", "ö"]), max_size=9)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return make_fake_tokenizer()


def run(tokenizer, text: str, stops: list[str]) -> tuple[TurnText, list[Event]]:  # type: ignore[no-untyped-def]
    """Feed a text as a session does, up to the stop string."""
    added = tokenizer.added_tokens
    splitter = make_splitter(tokenizer.token_bytes, [], added["<think>"], added["</think>"])
    turn = TurnText(splitter, stops)
    events: list[Event] = []
    for token_id in tokenizer.encode(text, allow_special=True):
        events.extend(turn.push(NewToken(token_id)))
        if turn.is_stopped:
            break
    else:
        events.extend(turn.finish())
    events.append(turn.done("stop", Timings()))
    return turn, events


@given(parts=TEXT)
def test_joined_ids_are_the_generated_ids(tokenizer, parts: list[str]) -> None:  # type: ignore[no-untyped-def]
    turn, events = run(tokenizer, "".join(parts), ["stop"])
    assert [i for event in events for i in event.token_ids] == turn.token_ids
    assert all(event.text for event in events[:-1])
    assert "stop" not in turn.answer


def test_reasoning_may_hold_a_stop_string(tokenizer) -> None:  # type: ignore[no-untyped-def]
    turn, _ = run(tokenizer, "<think>\nstop\n</think>\n\nGo on, stop here", ["stop"])
    assert (turn.reasoning, turn.answer) == ("stop", "Go on, ")


def test_text_held_back_comes_at_the_end(tokenizer) -> None:  # type: ignore[no-untyped-def]
    turn, events = run(tokenizer, "a sto", ["stop"])
    assert turn.answer == "a sto"
    assert events[-2].text == "sto"


def test_an_answer_is_the_events_joined() -> None:
    timings = Timings(prompt_tokens=1)
    events = [
        Event("reasoning", "r", (1,)),
        Event("answer", "a", (2, 3)),
        Event("answer", "b", (4,)),
        Event("done", "", (5,), "length", timings, notices=("GPU stopped.",)),
    ]
    answer = collect_answer(iter(events))
    assert answer.notices == ("GPU stopped.",)
    assert (answer.text, answer.reasoning, answer.token_ids) == ("ab", "r", (1, 2, 3, 4, 5))
    assert (answer.finish_reason, answer.timings) == ("length", timings)


@pytest.mark.parametrize(
    ("prompt_ids", "is_open"),
    [([7, 8, 9], False), ([7, 1, 9], True), ([1, 9, 2, 9], False), ([1, 9, 9, 9, 9], False)],
)
def test_the_end_of_the_prompt_tells_whether_thinking_began(
    prompt_ids: list[int], is_open: bool
) -> None:
    splitter = make_splitter(lambda token_id: b"x", prompt_ids, 1, 2)
    assert next(splitter.push(5))[0] == ("reasoning" if is_open else "answer")


def test_without_thinking_no_prompt_opens_a_block() -> None:
    splitter = make_splitter(lambda token_id: b"x", [1, 2], None, None)
    assert next(splitter.push(5)) == ("answer", "x")


def test_the_stopwatch_counts() -> None:
    watch = Stopwatch(10)
    watch.reused(4)
    assert watch.read().ttft_s is None
    watch.decoded()
    watch.decoded()
    timings = watch.read()
    assert (timings.reused_tokens, timings.prefill_tokens, timings.decode_tokens) == (4, 6, 2)
    assert timings.ttft_s is not None
    assert 0 <= timings.ttft_s <= timings.total_s
