"""Several packages: loaded when asked for, once, and unloaded when idle."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
Start = Callable[..., Any]
Wait = Callable[..., None]


def ask(url: str, model: str | None) -> httpx.Response:
    body = BODY if model is None else {**BODY, "model": model}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def states(url: str) -> dict[str, str]:
    data = httpx.get(f"{url}/v1/models").json()["data"]
    return {entry["id"]: entry["qwen_edge"]["state"] for entry in data}


def test_the_only_model_needs_no_name(start_scripted: Start, wait_for: Wait) -> None:
    server = start_scripted()
    wait_for(lambda: states(server.url) == {"scripted": "loaded"}, within_s=10)
    assert ask(server.url, None).status_code == 200
    reply = ask(server.url, "scriptet")
    assert reply.status_code == 404
    assert "Did you mean 'scripted'" in reply.json()["error"]["message"]


def test_several_are_loaded_when_asked_for_one_at_a_time(start_scripted: Start) -> None:
    server = start_scripted(names=("one", "two"), loads_first=False)
    assert states(server.url) == {"one": "unloaded", "two": "unloaded"}
    assert httpx.get(f"{server.url}/health").status_code == 200
    missing = ask(server.url, None).json()["error"]
    assert (missing["param"], "several" in missing["message"]) == ("model", True)
    assert ask(server.url, "two").status_code == 200
    assert states(server.url) == {"one": "unloaded", "two": "loaded"}
    assert ask(server.url, "one").status_code == 200
    assert states(server.url) == {"one": "loaded", "two": "unloaded"}
    assert server.models[0].batcher.is_closed
    assert server.loads == ["two", "one"]


def test_many_who_ask_at_once_load_once(start_scripted: Start, wait_for: Wait) -> None:
    server = start_scripted(names=("one", "two"), loads_first=False, holds_load=True)
    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, server.url, "one") for _ in range(6)]
        wait_for(lambda: server.num_wanted == 6, within_s=10)
        server.may_load.set()
        replies = [future.result() for future in asking]
    assert [reply.status_code for reply in replies] == [200] * 6
    assert server.loads == ["one"]


def test_a_model_that_answers_is_not_unloaded_for_another(
    start_scripted: Start, wait_for: Wait
) -> None:
    server = start_scripted(names=("one", "two"), loads_first=False)
    assert ask(server.url, "one").status_code == 200
    server.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(ask, server.url, "one")
        wait_for(lambda: server.num_running == 1, within_s=10)
        reply = ask(server.url, "two")
        server.gate.set()
        assert held.result().status_code == 200
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_full")
    assert ask(server.url, "two").status_code == 200


def test_two_may_be_in_memory_where_that_is_allowed(start_scripted: Start) -> None:
    server = start_scripted(names=("one", "two"), loads_first=False, max_loaded=2)
    for name in ("one", "two", "one"):
        assert ask(server.url, name).status_code == 200
    assert states(server.url) == {"one": "loaded", "two": "loaded"}
    assert server.loads == ["one", "two"]


def test_an_idle_model_is_unloaded_and_loaded_again(start_scripted: Start, wait_for: Wait) -> None:
    server = start_scripted(names=("one", "two"), loads_first=False, unload_after_s=1)
    assert ask(server.url, "one").status_code == 200
    started_s = time.monotonic()
    wait_for(lambda: states(server.url)["one"] == "unloaded", within_s=8)
    assert time.monotonic() - started_s > 0.8
    assert ask(server.url, "one").status_code == 200
    assert server.loads == ["one", "one"]
