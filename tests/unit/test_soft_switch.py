"""Soft switches: a word of its own, the newest one counts, and only where there is a choice."""

from typing import Any

import pytest

from qwen_edge.runtime.soft_switch import find_soft_switch, will_think


def user(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How many r's? /no_think", False),
        ("/think", True),
        ("/no_think\nWhy?", False),
        ("Really? /think.", True),
        ("first /no_think, then /think!", True),
        ("first /think then\t/no_think", False),
        ("Hi", None),
        ("", None),
        ("see src/think or /think/about.md", None),
        ("see /think.py or x/no_think", None),
        ("/thinking /no_thinking /nothink /no-think /NO_THINK", None),
        ("`/think` x=/no_think -/think", None),
    ],
)
def test_a_switch_is_a_word_of_its_own(text: str, expected: bool | None) -> None:
    assert find_soft_switch([user(text)]) is expected


def test_the_newest_switch_of_a_user_or_system_message_counts() -> None:
    system = {"role": "system", "content": "Be brief. /no_think"}
    answer = {"role": "assistant", "content": "You wrote /think"}
    tool = {"role": "tool", "content": "/think"}
    assert find_soft_switch([system, user("Hi"), answer, tool]) is False
    assert find_soft_switch([system, user("Hi /think"), answer, user("More")]) is True
    assert find_soft_switch([user("/think"), user("/no_think"), answer]) is False
    parts = [{"type": "text", "text": "/think"}, {"type": "text", "text": "/no_think"}]
    assert find_soft_switch([user(parts), {"role": "user"}]) is False
    assert find_soft_switch([{**system, "role": "developer"}, user("Hi")]) is False


@pytest.mark.parametrize(
    ("mode", "thinking", "text", "expected"),
    [
        ("switchable", None, "Hi", True),
        ("switchable", None, "Hi /no_think", False),
        ("switchable", True, "Hi /no_think", False),
        ("switchable", False, "Hi /think", False),
        ("always", None, "Hi /no_think", True),
        ("never", None, "Hi /think", False),
    ],
)
def test_the_hard_switch_and_the_model_come_first(
    mode: Any, thinking: bool | None, text: str, expected: bool
) -> None:
    assert will_think([user(text)], thinking=thinking, mode=mode) is expected


def test_a_long_text_is_read_in_linear_time() -> None:
    assert find_soft_switch([user("/think" + "." * 200_000 + "x" + " /think?" * 50_000)]) is True
