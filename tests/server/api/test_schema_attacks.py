"""Schemas and tools made to exhaust a server: refused, or kept to; nobody else waits for it."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

QUICK_S = 20  # each takes 0.1 to 1.5 s where nothing else runs
FEW_TOKENS = {
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 20,
    "think": False,
}


def nest(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def double(keyword: str) -> dict[str, Any]:
    """Return a schema of 26 lines that stands for 2^25."""
    steps = {f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(25)}
    return {"$ref": "#/$defs/a0", "$defs": {**steps, "a25": {"type": "null"}}}


REFUSED = {
    "endless": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "deep": nest(40),
    "no-regex": {"type": "string", "pattern": "["},
    "no-type": {"type": 5},
    "many-values": {"enum": [f"v{i}" for i in range(90_000)]},
    "much-text": {"enum": ["x" * 1_000 + str(i) for i in range(1_000)]},
    "many-choices": {"anyOf": [{"const": [i] * 5} for i in range(5_000)]},
    "many-fields": {"properties": {f"k{i}": {"type": "string"} for i in range(20_000)}},
    "long-answer": {"type": "string", "minLength": 10**7},
    "long-list": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "product": {"allOf": [{"anyOf": [{"const": i * j} for j in range(50)]} for i in range(50)]},
    "doubling-all": double("allOf"),
    "from-elsewhere": {"$ref": "http://192.0.2.1/schema.json"},
    "from-a-file": {"$ref": "file:///etc/passwd"},
}
KEPT_TO = {
    "backtracking": {"type": "string", "pattern": "(a+)+b"},
    "alternatives": {"type": "string", "pattern": "^(a|aa)*$"},
    "repeats": {"type": "string", "pattern": "a{1,100000}"},
    "repeats-of-repeats": {"type": "string", "pattern": "(((a{1,100}){1,100}){1,100}){1,100}"},
    "doubling-any": double("anyOf"),
}


def ask_beside_another(url: str, body: dict[str, Any]) -> httpx.Response:
    """Send a request, and see that an ordinary one is answered meanwhile."""

    def send(what: dict[str, Any]) -> tuple[httpx.Response, float]:
        started_s = time.monotonic()
        reply = httpx.post(f"{url}/v1/chat/completions", json=what, timeout=60)
        return reply, time.monotonic() - started_s

    with ThreadPoolExecutor(2) as pool:
        attack = pool.submit(send, {**FEW_TOKENS, **body})
        other, waited_s = pool.submit(send, FEW_TOKENS).result()
        reply, took_s = attack.result()
    assert other.status_code == 200 and waited_s < QUICK_S
    assert took_s < QUICK_S
    return reply


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }


@pytest.mark.trust("T-SRV-08", "T-SRV-09")
@pytest.mark.parametrize("name", [*REFUSED, *KEPT_TO])
def test_a_schema_cannot_exhaust_the_server(served: str, name: str) -> None:
    reply = ask_beside_another(served, as_format((REFUSED | KEPT_TO)[name]))
    assert reply.status_code == (400 if name in REFUSED else 200), reply.text[:500]
    if name in REFUSED:
        error = reply.json()["error"]
        assert error["message"] and error["fix"]


@pytest.mark.trust("T-SRV-09")
@pytest.mark.parametrize("name", REFUSED)
def test_parameters_of_a_tool_cannot_either(served: str, name: str) -> None:
    parameters = {"type": "object", "properties": {"x": REFUSED[name]}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    reply = ask_beside_another(served, {"tools": [tool], "tool_choice": "required"})
    assert reply.status_code == 400, reply.text[:500]
    assert reply.json()["error"]["fix"]
