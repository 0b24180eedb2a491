"""Running calls: in order, results as text, and mistakes told to the model."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.tools.running import check_runnable, run_tool_calls
from qwen_edge.runtime.tools.tool import Tool, read_tools
from qwen_edge.runtime.tools.tool_call import ToolCall


class Color(Enum):
    RED = "red"


@dataclass
class Found:
    name: str
    color: Color


def run(function: Callable[..., object], **arguments: object) -> str:
    """Return the result of one call as the model sees it."""
    tools = read_tools([function])
    (message,) = run_tool_calls([ToolCall("call_1", tools[0].name, arguments)], tools)
    assert (message["role"], message["tool_call_id"]) == ("tool", "call_1")
    return str(message["content"])


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it\nis", "as it\nis"),
        ({"ö": [1, None]}, '{"ö": [1, null]}'),
        (None, "null"),
        (2.5, "2.5"),
        ((1, 2), "[1, 2]"),
        (Found("a", Color.RED), '{"name": "a", "color": "red"}'),
        ("half \ud800", "half ?"),
    ],
)
def test_results(result: object, text: str) -> None:
    def f() -> object:
        return result

    assert run(f) == text


def fails() -> None:
    raise ZeroDivisionError("no\ud800")


def fails_at_length() -> None:
    raise ValueError("a" * 5_000)


def endless() -> object:
    found: list[object] = []
    found.append(found)
    return found


@pytest.mark.trust("T-GEN-03")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (fails, "ZeroDivisionError: no?"),
        (fails_at_length, "ValueError: aaa"),
        (endless, "Circular"),
        (lambda: {1, 2}, "set, which has no JSON form"),
        (lambda: float("nan"), "JSON"),
        (lambda: {"a": object()}, "object, which has no JSON form"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(function: Callable[..., object], words: str) -> None:
    tools = [Tool("f", function=function)]
    (message,) = run_tool_calls([ToolCall("call_1", "f", {})], tools)
    error = json.loads(str(message["content"]))["error"]
    assert words in error
    assert len(error) <= 1_000
    error.encode("utf-8")


def test_arguments_that_do_not_fit_are_told_to_the_model() -> None:
    def f(n: int) -> int:
        return n

    assert run(f, n=3) == "3"
    assert json.loads(run(f, n="3")) == {"error": "n is '3'; expected a whole number"}
    assert json.loads(run(f)) == {"error": "n is missing"}


def test_calls_run_in_order_and_an_unknown_one_is_told() -> None:
    seen: list[int] = []

    def note(n: int) -> int:
        seen.append(n)
        return n

    calls = [ToolCall(f"call_{n}", "note", {"n": n}, n) for n in range(3)]
    messages = run_tool_calls([*calls, ToolCall("call_3", "find", {})], read_tools([note]))
    assert seen == [0, 1, 2]
    assert [message["content"] for message in messages[:3]] == ["0", "1", "2"]
    assert "there is no tool 'find'" in str(messages[3]["content"])


def test_a_tool_of_ones_own_gets_the_arguments_as_they_are() -> None:
    tool = Tool("f", "", {"type": "object"}, lambda **given: given)
    (message,) = run_tool_calls([ToolCall("call_1", "f", {"from": 1, "to": [2]})], [tool])
    assert message["content"] == '{"from": 1, "to": [2]}'


def test_a_tool_without_a_function_is_refused_before_any_runs() -> None:
    def f() -> None:
        pytest.fail("it was run")

    tools = read_tools([f, {"name": "g"}])
    with pytest.raises(UsageError, match="nothing to run for the tool 'g'"):
        run_tool_calls([ToolCall("call_1", "f", {}), ToolCall("call_2", "g", {})], tools)
    with pytest.raises(UsageError, match="'g'"):
        check_runnable(tools)
    check_runnable(tools[:1])


@pytest.mark.trust("T-GEN-03")
def test_an_interrupt_is_no_result() -> None:
    def f() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(f)
