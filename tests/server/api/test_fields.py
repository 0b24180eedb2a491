"""Every field of every request: what is refused by name, what is taken."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import EdgeError, UsageError
from qwen_edge.server.api.chat_request import ChatRequest
from qwen_edge.server.api.completion_request import CompletionRequest
from qwen_edge.server.api.fields import RequestFields, read_request
from qwen_edge.server.api.openapi import make_openapi
from qwen_edge.server.api.responses_request import ResponsesRequest

KINDS: dict[type[RequestFields], dict[str, Any]] = {
    ChatRequest: {"messages": [{"role": "user", "content": "Hi"}]},
    CompletionRequest: {"prompt": "Hi"},
    ResponsesRequest: {"input": "Hi"},
}
FIELDS = [
    pytest.param(kind, field.alias or name, id=f"{kind.__name__}-{name}")
    for kind in KINDS
    for name, field in kind.model_fields.items()
]


def use(request: Any) -> object:
    """Read everything that a request says."""
    if isinstance(request, ChatRequest):
        return request.conversation(), request.options(), request.includes_usage()
    if isinstance(request, ResponsesRequest):
        return request.new_messages(), request.options()
    return request.prompts(), request.options()


@pytest.mark.trust("T-SRV-02")
@pytest.mark.parametrize(("kind", "field"), FIELDS)
@pytest.mark.parametrize(
    "wrong", [{"x": 1}, [[[]]], 1.5, "x\ud800", -(10**30)], ids=lambda v: type(v).__name__
)
def test_a_field_of_another_kind_is_refused_by_its_name(
    kind: type[RequestFields], field: str, wrong: Any
) -> None:
    """Or it is taken, where that kind of value is one of its own."""
    body = {**KINDS[kind], field: wrong}
    try:
        use(read_request(kind, body))
    except UsageError as error:
        told = str(error.facts.get("param", "")) + error.problem
        assert field in told, error
        assert error.fix


@pytest.mark.trust("T-SRV-02")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_unknown_field_is_refused_before_all_else(kind: type[RequestFields]) -> None:
    with pytest.raises(UsageError, match=r"'temperatur' is not supported\. Did you mean") as caught:
        read_request(kind, {**KINDS[kind], "temperatur": 1, "top_p": "x"})
    assert caught.value.facts["param"] == "temperatur"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(
    data=st.dictionaries(
        st.text(max_size=12) | st.sampled_from(["messages", "prompt", "input", "stop", "tools"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=6), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=5,
    )
)
def test_no_body_is_a_bug(kind: type[RequestFields], data: dict[str, Any]) -> None:
    try:
        use(read_request(kind, {**KINDS[kind], **data}))
    except EdgeError as error:
        assert error.problem


@pytest.mark.parametrize(
    ("given", "thinking", "budget"),
    [
        ({}, None, None),
        ({"think": True}, True, None),
        ({"think": "low"}, True, 1_024),
        ({"reasoning_effort": "none"}, False, None),
        ({"reasoning_effort": "medium"}, True, 4_096),
        ({"reasoning_effort": "high", "thinking_budget": 5}, True, 5),
        ({"chat_template_kwargs": {"enable_thinking": False}, "think": False}, False, None),
    ],
)
def test_thinking_has_several_names(
    given: dict[str, Any], thinking: bool | None, budget: int | None
) -> None:
    options = read_request(ChatRequest, {**KINDS[ChatRequest], **given}).options()
    assert options.get("thinking") is thinking
    assert options.get("thinking_budget") == budget


@pytest.mark.trust("T-SRV-03")
@pytest.mark.parametrize(
    "given",
    [
        {"think": True, "reasoning_effort": "none"},
        {"think": "low", "reasoning_effort": "high"},
        {"chat_template_kwargs": {"enable_thinking": True}, "think": False},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"top_logprobs": 3},
        {"stream_options": {"include_usage": True}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "text", "schema": {}}},
        {"tool_choice": {"type": "allowed_tools"}},
        {"stop": ["x"] * 17},
        {"logit_bias": {"x": 1}},
        {"store": True},
        {"n": 0},
        {"n": 9},
    ],
    ids=str,
)
def test_what_contradicts_or_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        use(read_request(ChatRequest, {**KINDS[ChatRequest], **given}))
    assert caught.value.fix


def test_messages_may_come_back_as_they_were_given() -> None:
    sent_back = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "reasoning": "Hm.",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    body = {"messages": [{"role": "user", "content": "Hi", "name": "Ann"}, sent_back]}
    read = read_request(ChatRequest, body).conversation()
    assert read[0] == {"role": "user", "content": "Hi"}
    assert read[1]["reasoning_content"] == "Hm."
    assert set(read[1]) == {"role", "content", "reasoning_content", "tool_calls"}
    with pytest.raises(UsageError, match="'weight'"):
        read_request(
            ChatRequest, {"messages": [{"role": "user", "content": "Hi", "weight": 1}]}
        ).conversation()


def test_items_become_the_messages_they_stand_for() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "x"}
    read = read_request(
        ResponsesRequest,
        {
            "input": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {
                    "type": "reasoning",
                    "summary": [],
                    "content": [{"type": "reasoning_text", "text": "Hm."}],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Yes", "annotations": []}],
                },
                call,
                {**call, "call_id": "c2"},
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
                {
                    "type": "function_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "2"}],
                },
                {"role": "assistant", "content": "Done"},
            ]
        },
    ).new_messages()
    assert [message["role"] for message in read] == [
        "developer",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert read[2]["content"] == "Yes"
    assert read[2]["reasoning_content"] == "Hm."
    calls: Any = read[2]["tool_calls"]
    assert [one["id"] for one in calls] == ["c1", "c2"]
    assert [message["content"] for message in read[3:]] == ["1", "2", "Done"]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "x"},
        {"type": "message", "role": "user"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
        {"type": "function_call", "name": "f"},
    ],
    ids=lambda item: str(item.get("type")),
)
def test_items_that_are_none_are_named(item: dict[str, Any]) -> None:
    request = read_request(ResponsesRequest, {"input": [{"role": "user", "content": "x"}, item]})
    with pytest.raises(UsageError, match=r"input\[1\]"):
        request.new_messages()


def test_the_description_has_every_field() -> None:
    description = make_openapi(has_metrics=True)
    json.dumps(description)
    schemas = description["components"]["schemas"]
    for kind in KINDS:
        shown = set(schemas[kind.__name__]["properties"])
        assert shown == {field.alias or name for name, field in kind.model_fields.items()}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        assert "post" in description["paths"][path]
    assert "/metrics" in description["paths"]
    assert "/metrics" not in make_openapi()["paths"]
