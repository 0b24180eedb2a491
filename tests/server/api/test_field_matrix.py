"""Every field of every interface with values of other kinds and beyond its range, on a server."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from qwen_edge.server.api.chat_request import ChatRequest
from qwen_edge.server.api.completion_request import CompletionRequest
from qwen_edge.server.api.fields import RequestFields
from qwen_edge.server.api.responses_request import ResponsesRequest

MESSAGES = [{"role": "user", "content": "Hi"}]
KINDS: dict[str, tuple[type[RequestFields], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": MESSAGES, "max_completion_tokens": 3}),
    "/v1/completions": (CompletionRequest, {"prompt": "Hi", "max_tokens": 3}),
    "/v1/responses": (ResponsesRequest, {"input": "Hi", "max_output_tokens": 3, "store": False}),
}
WRONG: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, -(10**30), "", "x", [], [1], [[]], {}, {"x": 1},
]  # fmt: skip
# The second of two names for the same is told where they contradict each other.
ALSO = {"max_completion_tokens": "max_tokens"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
Send = Callable[[str, Any], httpx.Response]


@pytest.fixture
def send(start_scripted: Callable[..., Any]) -> Iterator[Send]:
    """Return a sender of bodies, as JSON or as they are, to a server that says "Hello."."""
    server = start_scripted(["Hello."])
    with httpx.Client(base_url=server.url, timeout=30) as client:

        def post(path: str, body: Any) -> httpx.Response:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"content-type": "application/json"}
            return client.post(path, content=content, headers=headers)

        yield post


@pytest.mark.trust("T-SRV-02", "T-SRV-03")
@pytest.mark.parametrize("path", KINDS)
def test_any_value_of_any_field_is_taken_or_refused_by_name(
    send: Send, path: str, cases: Any
) -> None:
    kind, base = KINDS[path]
    num_refused = 0
    for name, field in kind.model_fields.items():
        name = field.alias or name
        for wrong in WRONG:
            reply = send(path, {**base, name: wrong})
            cases(1)
            if reply.status_code == 200:
                continue
            error, told = reply.json()["error"], f"{name}={wrong!r:.60}: {reply.text}"
            # A name of a model that is not served, and one of a response that is not stored.
            assert reply.status_code in (400, 404), told
            assert error["message"] and error["fix"], told
            assert error["param"].startswith((name, ALSO.get(name, name))), told
            num_refused += 1
    assert num_refused > 100
    assert send(path, base).status_code == 200


@pytest.mark.trust("T-SRV-02")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 65])
@pytest.mark.parametrize("path", KINDS)
def test_numbers_that_are_none_are_refused(send: Send, path: str, number: str) -> None:
    body = json.dumps(KINDS[path][1])[:-1] + f', "temperature": {number}}}'
    reply = send(path, body.encode())
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.trust("T-SRV-02")
@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "messages", [{"role": "user", "content": [IMAGE]}]),
        ("/v1/chat/completions", "messages", [{"role": "wizard", "content": "Hi"}]),
        ("/v1/chat/completions", "messages", [*MESSAGES, {"role": "assistant", "content": "x"}]),
        ("/v1/responses", "input", []),
        ("/v1/responses", "input", [{"role": "user", "content": [{"type": "input_image"}]}]),
        ("/v1/completions", "prompt", []),
        ("/v1/completions", "prompt", [[1], [10**9]]),
        ("/v1/completions", "prompt", "word " * 1_000),
    ],
)
def test_what_is_wrong_inside_the_conversation_names_its_field(
    send: Send, path: str, field: str, value: Any
) -> None:
    reply = send(path, {**KINDS[path][1], field: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith(field)


@pytest.mark.trust("T-SRV-03")
@pytest.mark.parametrize(
    ("field", "value", "is_taken"),
    [
        ("seed", -(2**63), True),
        ("seed", 2**64, True),
        ("top_k", 10**9, True),
        ("top_k", -1, False),
        ("max_completion_tokens", 2**63, True),
        ("max_completion_tokens", 0, False),
        ("n", 8, True),
        ("n", 9, False),
        ("n", 10**18, False),
        ("stop", ["x" * 10_000] * 16, True),
        ("stop", ["x"] * 17, False),
        ("stop", [""], False),
        ("logit_bias", {str(i): 1.0 for i in range(250)}, True),
        ("logit_bias", {"9" * 10: 1.0}, False),
        ("logit_bias", {"1": 101.0}, False),
        ("temperature", 100.0, True),
        ("temperature", 1e300, False),
    ],
)
def test_extremes_are_taken_as_far_as_the_docs_say(
    send: Send, field: str, value: Any, *, is_taken: bool
) -> None:
    body = {"messages": MESSAGES, "max_completion_tokens": 3, field: value}
    reply = send("/v1/chat/completions", body)
    assert reply.status_code == (200 if is_taken else 400), reply.text
    if not is_taken:
        assert reply.json()["error"]["param"].startswith(field)


def chat_format(schema: Any) -> dict[str, Any]:
    named = {"name": "x", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def responses_format(schema: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}


def as_tool(schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


SCHEMAS: dict[str, dict[str, Any]] = {
    "type-5": {"type": 5},
    "no-regex": {"type": "string", "pattern": "["},
    "no-answer": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "from-elsewhere": {"$ref": "http://192.0.2.1/x.json"},
    "enum-of-nothing": {"enum": []},
    "required-5": {"type": "object", "required": 5},
}


@pytest.mark.trust("T-SRV-07")
@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_that_cannot_be_kept_to_name_their_field(send: Send, name: str) -> None:
    schema = SCHEMAS[name]
    chat, responses = {"messages": MESSAGES}, {"input": "Hi"}
    inner = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    flat = {"type": "function", "name": "f", "parameters": inner}
    for path, body, param in (
        ("/v1/chat/completions", chat | chat_format(schema), "response_format"),
        ("/v1/responses", responses | responses_format(schema), "text.format"),
        ("/v1/chat/completions", chat | {"tools": [as_tool(inner)]}, "tools"),
        ("/v1/responses", responses | {"tools": [flat]}, "tools"),
    ):
        reply = send(path, body)
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["param"] == param
    assert send("/v1/chat/completions", chat).status_code == 200


GOOD = as_tool({"type": "object", "properties": {}})


@pytest.mark.trust("T-SRV-07")
@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{}], None, "tools"),
        ([{"type": "function"}], None, "tools"),
        ([{"type": "function", "function": {}}], None, "tools"),
        ([{"type": "function", "function": {"name": ""}}], None, "tools"),
        ([{"type": "function", "function": {"name": "a b"}}], None, "tools"),
        ([{"type": "function", "function": {"name": 5}}], None, "tools"),
        ([{"type": "retrieval", "function": {"name": "f"}}], None, "tools"),
        ([as_tool([])], None, "tools"),
        ([as_tool({"type": "array"})], None, "tools"),
        ([as_tool({"properties": []})], None, "tools"),
        ([as_tool({"properties": {"a": 5}})], None, "tools"),
        ([as_tool({"required": "a"})], None, "tools"),
        ([GOOD, GOOD], None, "tools"),
        ([GOOD] * 129, None, "tools"),
        ([GOOD], "g", "tool_choice"),
        ([GOOD], {"type": "function", "function": {"name": "g"}}, "tool_choice"),
        ([GOOD], {"type": "function"}, "tool_choice"),
        (None, "required", "tool_choice"),
    ],
)
def test_tools_that_are_none_name_their_field(
    send: Send, tools: Any, choice: Any, param: str
) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "tools": tools, "tool_choice": choice}
    reply = send("/v1/chat/completions", body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert send("/v1/chat/completions", {"messages": MESSAGES}).status_code == 200
