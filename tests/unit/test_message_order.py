"""Which message may follow which: what clients send goes through, what cannot be is named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import UsageError
from qwen_edge.runtime.chat import ChatTemplate, check_messages
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE, make_fake_tokenizer

USER: dict[str, Any] = {"role": "user", "content": "Q"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "A"}
SYSTEM: dict[str, Any] = {"role": "system", "content": "S"}


def call(call_id: str | None = None, name: str = "f", arguments: object = "{}") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "function": function} | ({"id": call_id} if call_id else {})


def calls(*given_calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(given_calls)}


def result(content: str, call_id: str | None = None) -> dict[str, Any]:
    message = {"role": "tool", "content": content}
    return message | ({"tool_call_id": call_id} if call_id else {})


def contents(messages: Any) -> list[object]:
    return [message["content"] for message in check_messages(messages)]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], "Q"),
        ([SYSTEM, USER], "SQ"),
        ([USER, USER, ANSWER, ANSWER, USER], "QQAAQ"),
        ([ANSWER, USER], "AQ"),
        ([USER, calls(call("a")), result("1", "a")], ["Q", "", "1"]),
        ([USER, calls(call("a")), result("1", "a"), ANSWER, USER], ["Q", "", "1", "A", "Q"]),
        ([USER, calls(call()), result("1")], ["Q", "", "1"]),
        ([USER, calls(call()), result("1", "whatever")], ["Q", "", "1"]),
        ([USER, {**ANSWER, "tool_calls": None}, USER], "QAQ"),
        ([USER, {**ANSWER, "tool_calls": [], "function_call": None}, USER], "QAQ"),
    ],
)
def test_what_clients_send_goes_through(messages: Any, expected: Any) -> None:
    assert contents(messages) == list(expected)


def test_no_tool_calls_are_none() -> None:
    message: Any = {**ANSWER, "tool_calls": []}
    assert check_messages([USER, message, USER])[1] == ANSWER


def test_system_and_developer_messages_at_the_beginning_become_one() -> None:
    developer = {"role": "developer", "content": [{"type": "text", "text": "D"}]}
    (system, _) = check_messages([SYSTEM, {**SYSTEM, "content": ""}, developer, USER])
    assert system == {"role": "system", "content": "S\n\nD"}
    assert check_messages([developer, USER])[0] == {"role": "system", "content": "D"}


def test_results_of_parallel_calls_are_put_in_the_order_of_the_calls() -> None:
    """The template writes no ids, so the model goes by the order."""
    three = calls(call("a"), call("b"), call("c"))
    assert contents([USER, three, result("3", "c"), result("1", "a"), result("2", "b")])[2:] == [
        "1",
        "2",
        "3",
    ]
    assert contents([USER, three, result("2", "b"), result("1"), result("3")])[2:] == [
        "1",
        "2",
        "3",
    ]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([USER, SYSTEM, USER], r"messages\[1\] is a system message after"),
        ([SYSTEM], r"messages\[0\], the last one, is a system message"),
        ([SYSTEM, SYSTEM], r"messages\[1\], the last one, is a system message"),
        ([USER, ANSWER], r"messages\[1\], the last one, is the assistant's.*not supported"),
        ([USER, result("1")], r"messages\[1\] is a tool's result, but no tool call"),
        ([result("1"), USER], r"messages\[0\] is a tool's result"),
        ([USER, ANSWER, result("1"), USER], r"messages\[2\] is a tool's result"),
        (
            [USER, calls(call("a")), USER, result("1", "a")],
            r"messages\[1\] calls the tool 'f' with the id 'a', and no result",
        ),
        ([USER, calls(call("a"))], r"messages\[1\] calls the tool 'f' with the id 'a'"),
        (
            [USER, calls(call("a"), call("b", "g")), result("1", "a"), USER],
            r"messages\[1\] calls the tool 'g' with the id 'b'",
        ),
        (
            [USER, calls(call("a"), call("b")), result("1", "x"), result("2", "b")],
            r"messages\[2\] answers the tool call 'x'; expected one of 'a', 'b'",
        ),
        (
            [USER, calls(call("a")), result("1", "a"), result("2", "a")],
            r"messages\[3\] is a second result of the tool call 'a'",
        ),
        (
            [USER, calls(call("a")), result("1"), result("2")],
            r"messages\[3\] is one result too many; expected 1",
        ),
        ([USER, calls(call("a"), call("a")), result("1", "a")], "two tool calls with the id 'a'"),
        ([{**USER, "tool_calls": [call()]}], r"messages\[0\] has tool calls and the role 'user'"),
        ([USER, {**ANSWER, "function_call": {"name": "f"}}, USER], "expected 'tool_calls'"),
        ([USER, {**ANSWER, "tool_calls": "f()"}, USER], "tool_calls of type str"),
        ([USER, calls({"name": ""}), result("1")], r"\['tool_calls'\]\[0\] has the name ''"),
        ([USER, {**ANSWER, "tool_calls": ["f"]}, USER], "is 'f'; expected a mapping"),
        ([USER, calls({**call(), "id": 7}), result("1")], "has the id 7; expected a text"),
        ([USER, calls({**call(), "type": "custom"}), result("1")], "'custom'; expected 'funct"),
        ([USER, {"role": "function", "content": "x"}], "the role 'function'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(messages: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        check_messages(messages)
    assert caught.value.fix


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM],
        [USER, ANSWER],
        [USER, calls(call("a"), call("b"))],
        [USER, calls(call("a"), call("b")), result("2", "b")],
        [USER, calls(call("a"), call("b")), result("1")],
    ],
)
def test_a_conversation_that_is_added_to_may_end_anywhere(messages: Any) -> None:
    checked = check_messages(messages, is_complete=False)
    assert [message["content"] or None for message in checked] == [m["content"] for m in messages]
    with pytest.raises(UsageError):
        check_messages(messages)
    with pytest.raises(UsageError, match="tool"):
        check_messages([*messages, result("3", "c"), result("4"), USER], is_complete=False)


def test_results_added_one_by_one_find_their_calls() -> None:
    messages: Any = [USER, calls(call("a"), call("b"))]
    for added in (result("2", "b"), result("1", "a")):
        messages = check_messages([*messages, added], is_complete=False)
    assert [message["content"] for message in messages[2:]] == ["1", "2"]


def read_arguments(arguments: object) -> object:
    checked: Any = check_messages([USER, calls(call("a", "f", arguments)), result("1", "a")])
    return checked[1]["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            '{"city":"K\\u00f6ln",  "n": [1, 2.5, null]}',
            '{"city":"K\\u00f6ln",  "n": [1, 2.5, null]}',
        ),
        ({"a": {"b": 1}}, {"a": {"b": 1}}),
        ("", {}),
        (None, {}),
    ],
)
def test_arguments_are_checked_and_stay_as_they_are(arguments: object, expected: object) -> None:
    assert read_arguments(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ('{"a": 1', "arguments that are not JSON: '{\"a\": 1'"),
        ("[1]", r"has the arguments \[1\]; expected a JSON object"),
        ("5", "the arguments 5"),
        ([1], r"the arguments \[1\]"),
        ('{"a": NaN}', "is nan, which JSON cannot write"),
        ('{"a": 1e999}', "is inf"),
        ('{"a": "\\ud83d"}', "lone surrogate"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested more than"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' + "9" * 5_000 + "}", "not JSON"),
    ],
)
def test_broken_arguments_are_refused(arguments: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        read_arguments(arguments)
    assert len(caught.value.problem) < 400


def test_a_flat_call_keeps_its_form_and_nothing_of_the_caller_s_is_changed() -> None:
    given_call = {"name": "f", "arguments": '{"a": 1}'}
    messages = [USER, calls(given_call), result("1")]
    before = json.dumps(messages)
    checked: Any = check_messages(messages)
    assert checked[1]["tool_calls"] == [given_call]
    assert json.dumps(messages) == before


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ("arguments if call.arguments is string else call.arguments | tojson", '{"a":1}'),
        ("arguments | tojson", '{"a": 1}'),
        ("arguments.a | tojson", "1"),
    ],
)
def test_a_template_that_needs_mappings_gets_them(
    is_flat: bool, writes: str, expected: str
) -> None:
    source = (
        "{% for message in messages %}{% for call in message.tool_calls or [] %}"
        "{% set call = call.function or call %}[{{ call." + writes + " }}]"
        "{% endfor %}{% endfor %}"
    )
    template = ChatTemplate(source, make_fake_tokenizer())
    given_call = call("a", arguments='{"a":1}')
    broken = {**call("b"), "function": {"name": "f", "arguments": {"a": 2}}}
    messages = [USER, calls(given_call["function"] if is_flat else given_call), calls(broken)]
    assert template.render(messages).startswith(f"[{expected}]")


MESSAGES = st.lists(
    st.sampled_from(
        [
            SYSTEM,
            USER,
            ANSWER,
            calls(call("a"), call("b")),
            calls(call(), content="x"),
            calls(call("c", arguments='{"deep": [{"er": {}}]}')),
            result("1", "a"),
            result("2", "b"),
            result("3"),
            result("4", "c"),
        ]
    ),
    max_size=7,
)


@given(MESSAGES)
def test_any_order_is_read_or_refused_and_reading_again_changes_nothing(messages: Any) -> None:
    template = ChatTemplate(CHAT_TEMPLATE, make_fake_tokenizer())
    try:
        checked = check_messages(messages)
    except UsageError:
        return
    assert check_messages(checked) == checked == check_messages(messages, is_complete=False)
    assert template.encode(checked)
    roles = [str(message["role"]) for message in checked]
    assert roles[-1] in ("user", "tool")
    assert "system" not in roles[1:]
    assert len(messages) - len(checked) == max(
        sum(message["role"] == "system" for message in messages) - 1, 0
    )
