"""Dropping the oldest turns: whole turns, the fewest, and few counts however long the talk is."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_edge.errors import ContextFullError, UsageError
from qwen_edge.runtime.chat import ChatTemplate, Message
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE, make_fake_tokenizer
from qwen_edge.runtime.overflow import (
    FittedConversation,
    check_on_overflow,
    find_newest_turn,
    fit_conversation,
)


def say(role: str, text: str = "x", **fields: object) -> dict[str, object]:
    return {"role": role, "content": text, **fields}


class Counter:
    """Counts a token for every `chars_per_token` characters, four more for each message."""

    def __init__(self, chars_per_token: float = 1) -> None:
        self.calls: list[int] = []
        self._chars_per_token = chars_per_token

    def __call__(self, messages: Sequence[Message]) -> int:
        texts = [str(message["content"]) for message in messages]
        self.calls.append(sum(4 + int(len(text) / self._chars_per_token) for text in texts) + 3)
        return self.calls[-1]


def turns_of(messages: Sequence[Message]) -> list[list[Message]]:
    """Cut a conversation at its user messages, system messages left out."""
    turns: list[list[Message]] = []
    for message in messages:
        if message["role"] == "system":
            continue
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


TURNS = st.lists(
    st.tuples(st.lists(st.integers(0, 400), min_size=1, max_size=4), st.sampled_from(["y", " "])),
    min_size=1,
    max_size=30,
)


@given(
    turns=TURNS,
    has_system=st.booleans(),
    greets=st.booleans(),
    limit=st.integers(10, 2_000),
    reserve=st.integers(0, 600),
    density=st.sampled_from([0.5, 1.0, 4.0, 40.0]),
)
@example([([4_000], "y")], False, False, 120, 0, 80.0)
@example([([95], "y")] * 10, False, False, 400, 0, 1.0)
def test_the_fewest_whole_turns_are_dropped(
    turns: Any, has_system: bool, greets: bool, limit: int, reserve: int, density: float
) -> None:
    messages = [say("system", "s" * 7)] if has_system else []
    messages += [say("assistant", "Hi!")] if greets else []
    for lengths, letter in turns:
        roles = ("user", "assistant", "tool", "assistant")
        messages += [say(role, letter * n) for role, n in zip(roles, lengths, strict=False)]
    count = Counter(density)
    try:
        fitted = fit_conversation(messages, Counter(density), limit, reserve_tokens=reserve)
    except ContextFullError as error:
        smallest = messages[:has_system] + turns_of(messages)[-1]
        assert error.facts["prompt_tokens"] == count(smallest) > limit
        assert error.facts["max_prompt_tokens"] == limit
        return
    assert isinstance(fitted, FittedConversation)
    assert fitted.num_tokens == count(fitted.messages) <= limit
    system = messages[:has_system]
    left = list(fitted.messages)[has_system:]
    assert system + list(fitted.dropped_messages) + left == messages
    kept, dropped = turns_of(left), turns_of(fitted.dropped_messages)
    assert dropped + kept == turns_of(messages)
    enough = limit - min(reserve, limit // 4)
    if not dropped:
        assert len(kept) == 1 or fitted.num_tokens <= enough
    else:
        assert count(messages) > enough or density > 30
        assert len(kept) == 1 or fitted.num_tokens <= limit * 3 // 4
        one_more = [*system, *dropped[-1], *left]
        assert count(one_more) > limit * 3 // 4, "three turns of 99 just fit into 300"


@pytest.mark.parametrize("density", [0.7, 3.5, 9.0])
def test_a_long_conversation_is_counted_a_few_times_and_never_as_a_whole(density: float) -> None:
    texts = ["short", "a longer answer " * 20, "y" * 500]
    messages = [say("system")]
    for index in range(5_000):
        messages += [say("user", texts[index % 3]), say("assistant", texts[index // 9 % 3])]
    count = Counter(density)
    begun_s = time.perf_counter()
    fitted = fit_conversation(messages, count, 4_096)
    assert time.perf_counter() - begun_s < 1.0
    assert len(count.calls) <= 12
    assert max(count.calls) <= 4 * 4_096 / min(density, 1)
    assert fitted.num_tokens <= 3_072
    one_more = [messages[0], *turns_of(fitted.dropped_messages)[-1], *fitted.messages[1:]]
    assert Counter(density)(one_more) > 3_072
    assert len(fitted.messages) + len(fitted.dropped_messages) == 10_001


def test_a_running_tool_exchange_stays_whole() -> None:
    template = ChatTemplate(CHAT_TEMPLATE, make_fake_tokenizer())
    calls = [{"name": "f", "arguments": {}}]
    exchange = [
        say("user", "Q" * 50),
        say("assistant", "", tool_calls=calls),
        say("tool", "T" * 90),
    ]
    messages = [say("user", "o" * 99), say("assistant", "p" * 99), *exchange]

    def count(some: Sequence[Message]) -> int:
        return len(template.encode(some))

    alone = count(exchange)
    fitted = fit_conversation(messages, count, alone)
    assert list(fitted.messages) == exchange
    assert list(fitted.dropped_messages) == messages[:2]
    with pytest.raises(ContextFullError, match="neither a question nor a tool call"):
        fit_conversation(messages, count, alone - 1)
    assert list(find_newest_turn(messages)) == exchange
    assert list(find_newest_turn(messages[1:2])) == messages[1:2]


def test_after_dropping_there_is_room_for_more_than_one_turn() -> None:
    """Otherwise every further turn would drop one and compute all the others anew."""
    messages: list[dict[str, object]] = []
    num_drops = 0
    for _ in range(40):
        messages += [say("user", "q" * 40), say("assistant", "a" * 40)]
        fitted = fit_conversation(messages, Counter(), 1_000, reserve_tokens=0)
        num_drops += bool(fitted.dropped_messages)
        messages = [dict(message) for message in fitted.messages]
    assert 1 <= num_drops <= 12


def test_unknown_ways_to_overflow_are_refused() -> None:
    check_on_overflow("refuse")
    with pytest.raises(UsageError, match="Did you mean 'drop-oldest'"):
        check_on_overflow("drop-oldes")
