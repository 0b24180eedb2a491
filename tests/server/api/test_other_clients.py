"""Programs that speak OpenAI's interface in their own ways: litellm, and an agent's tool loop."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."


# In a process of its own: litellm leaves an event loop open and warns of its own dependencies.
# It fetches a price list from the network unless told not to.
_LITELLM = """
import json, os, sys, warnings
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
warnings.simplefilter("ignore")
import litellm
litellm.telemetry = False
where, requests = json.load(sys.stdin)
for request in requests:
    answer = litellm.completion(**where, **request)
    parts = list(answer) if request.get("stream") else [answer]
    print(json.dumps([part.model_dump() for part in parts]))
"""


def ask_with_litellm(url: str, *requests: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return each request's answer, or the parts of a streamed one."""
    name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    where = {"model": f"openai/{name}", "api_base": f"{url}/v1", "api_key": "unused"}
    done = subprocess.run(
        [sys.executable, "-c", _LITELLM],
        input=json.dumps([{**where, "num_retries": 0}, requests]),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_litellm_gets_answers_streams_tools_and_schemas(served: str) -> None:
    """One library that many programs use to reach any server."""
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    json_schema = {"name": "person", "schema": schema, "strict": True}
    whole, stream, called, formed = ask_with_litellm(
        served,
        {"messages": CAPITAL, "temperature": 0},
        {"messages": CAPITAL, "temperature": 0, "stream": True},
        {
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
            "tools": [tool],
            "tool_choice": "required",
        },
        {
            "messages": [{"role": "user", "content": "Extract: Anna is 31 years old."}],
            "response_format": {"type": "json_schema", "json_schema": json_schema},
        },
    )
    message = whole[0]["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (PARIS, "I answer the question.")
    assert "".join(part["choices"][0]["delta"]["content"] or "" for part in stream) == PARIS
    calls = called[0]["choices"][0]["message"]["tool_calls"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Paris"}
    assert json.loads(formed[0]["choices"][0]["message"]["content"]) == {"name": "Anna", "age": 31}


def test_an_agent_works_through_its_tools(served: str, tmp_path: Path) -> None:
    """As coding agents do: stream, gather calls from deltas, run them, send all back, repeat."""
    ran: list[tuple[str, dict[str, Any]]] = []

    def get_weather(city: str) -> dict[str, Any]:
        (tmp_path / "asked").write_text(city, encoding="utf-8")
        return {"temperature": 17, "condition": "rain"}

    tools = [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Get the weather of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
            },
        }
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
    for _ in range(5):
        message = _stream_message(served, messages, tools)
        messages.append(message)
        if not message.get("tool_calls"):
            break
        for call in message["tool_calls"]:
            arguments = json.loads(call["function"]["arguments"])
            ran.append((call["function"]["name"], arguments))
            result = get_weather(**arguments)
            messages.append(
                {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)}
            )
    assert ran == [("get_weather", {"city": "Paris"})]
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "Paris"
    assert messages[-1]["content"] == "In Paris it is 17 degrees with rain."


def _stream_message(url: str, messages: Any, tools: Any) -> dict[str, Any]:
    """Return the message that a stream's deltas add up to."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: dict[int, dict[str, Any]] = {}
    body = {
        "messages": messages,
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 500,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    for chunk in map(json.loads, lines[:-1]):
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            for piece in delta.get("tool_calls", ()):
                call = calls.setdefault(
                    piece["index"],
                    {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
                )
                call["id"] += piece.get("id", "")
                call["function"]["name"] += piece["function"].get("name", "")
                call["function"]["arguments"] += piece["function"]["arguments"]
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message
