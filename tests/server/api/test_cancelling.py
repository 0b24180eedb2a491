"""Requests nobody wants any more, more requests than may be, and a server that ends."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from qwen_edge.errors import DeviceError

LONG = "word " * 400
BODY = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


def ask(url: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={**BODY, **options}, timeout=30)


def send_and_keep(port: int, **options: Any) -> socket.socket:
    """Send a request and return its connection, unread."""
    body = json.dumps({**BODY, **options}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(head.encode() + body)
    return connection


Wait = Callable[..., None]
Start = Callable[..., Any]


@pytest.mark.trust("T-GEN-01")
@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_its_place(
    start_scripted: Start, wait_for: Wait, is_stream: bool, is_reset: bool
) -> None:
    server = start_scripted([LONG], pace_s=0.005)
    connection = send_and_keep(server.port, stream=is_stream)
    wait_for(lambda: server.num_running == 1, within_s=10)
    if is_stream:
        connection.recv(64)
    if is_reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    started_s = time.monotonic()
    connection.close()
    wait_for(lambda: server.num_running == 0 and server.num_wanted == 0)
    assert time.monotonic() - started_s < 0.5
    assert "client left" in str(server.server.metrics.write())


@pytest.mark.trust("T-GEN-01")
def test_a_client_that_leaves_during_its_prompt_frees_its_place(
    start_scripted: Start, wait_for: Wait
) -> None:
    server = start_scripted([LONG])
    wait_for(lambda: bool(server.models), within_s=10)
    server.gate.clear()  # the step with its prompt does not end
    connection = send_and_keep(server.port)
    wait_for(lambda: server.num_running == 1, within_s=10)
    connection.close()
    wait_for(lambda: server.num_wanted == 0)
    assert server.num_running == 0
    server.gate.set()
    assert ask(server.url, max_tokens=3).status_code == 200


@pytest.mark.trust("T-GEN-01")
def test_a_client_that_leaves_the_line_is_never_answered(
    start_scripted: Start, wait_for: Wait
) -> None:
    server = start_scripted([LONG], parallel=1, pace_s=0.005)
    first = send_and_keep(server.port)
    wait_for(lambda: server.num_running == 1, within_s=10)
    second = send_and_keep(server.port)
    wait_for(lambda: server.num_wanted == 2)
    prompts = server.models[0].statistics().prompt_tokens
    second.close()
    wait_for(lambda: server.num_wanted == 1)
    first.close()
    wait_for(lambda: server.num_wanted == 0)
    assert ask(server.url, max_tokens=1).status_code == 200
    assert server.models[0].statistics().prompt_tokens == 2 * prompts


@pytest.mark.trust("T-GEN-01")
def test_a_client_that_leaves_while_its_request_is_handed_in_frees_its_place(
    start_scripted: Start, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody had looked whether it was still there, until its turn came."""
    server = start_scripted([LONG], parallel=1, pace_s=0.005)
    first = send_and_keep(server.port)
    wait_for(lambda: server.num_running == 1, within_s=10)
    [model] = server.models
    open_answer, may_open, opened = model.open_answer, threading.Event(), threading.Event()

    def wait_and_open(*args: Any, **options: Any) -> Any:
        opened.set()
        may_open.wait(10)
        return open_answer(*args, **options)

    monkeypatch.setattr(model, "open_answer", wait_and_open)
    second = send_and_keep(server.port)
    assert opened.wait(10)
    second.close()
    time.sleep(0.1)
    may_open.set()
    wait_for(lambda: server.num_wanted == 1, within_s=3)
    assert server.num_running == 1
    first.close()


def test_exactly_the_excess_is_refused_and_at_once(start_scripted: Start, wait_for: Wait) -> None:
    server = start_scripted(["Yes."], parallel=2, queue=3)
    wait_for(lambda: bool(server.models), within_s=10)
    server.gate.clear()
    with ThreadPoolExecutor(12) as pool:
        kept = [pool.submit(ask, server.url) for _ in range(5)]
        wait_for(lambda: server.num_wanted == 5, within_s=10)
        refused = [pool.submit(ask, server.url) for _ in range(7)]
        replies = [future.result() for future in refused]
        unread = httpx.post(
            f"{server.url}/v1/chat/completions",
            content=b"no JSON at all",
            headers={"content-type": "application/json"},
        )
        server.gate.set()
        answers = [future.result() for future in kept]
    assert [reply.status_code for reply in answers] == [200] * 5
    assert [reply.status_code for reply in replies] == [503] * 7
    for reply in [*replies, unread]:  # what nobody can answer now is not looked at
        assert reply.json()["error"]["code"] == "queue_full"
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.elapsed.total_seconds() < 1


def test_several_answers_take_several_places(start_scripted: Start) -> None:
    server = start_scripted(["Yes."], parallel=1, queue=2)
    assert ask(server.url, n=3).status_code == 200
    reply = ask(server.url, n=4)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_full")
    assert server.num_wanted == 0


@pytest.mark.trust("T-SRV-12")
def test_while_the_model_is_loaded_it_is_said(start_scripted: Start, wait_for: Wait) -> None:
    server = start_scripted(holds_load=True)
    health = httpx.get(f"{server.url}/health")
    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    reply = ask(server.url)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "loading")
    assert "retry-after" in reply.headers
    assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["qwen_edge"]["state"] == (
        "loading"
    )
    server.may_load.set()
    wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, within_s=10)
    assert ask(server.url).status_code == 200


@pytest.mark.trust("T-SRV-12")
def test_a_model_that_cannot_be_loaded_is_told_of(start_scripted: Start, wait_for: Wait) -> None:
    server = start_scripted(load_error=DeviceError("The device is gone.", "plug it in."))
    wait_for(lambda: not server.server.starting.is_loading)
    assert httpx.get(f"{server.url}/health").json() == {
        "status": "failed",
        "error": "The device is gone.",
    }
    error = ask(server.url).json()["error"]
    assert (error["code"], error["fix"]) == ("load_failed", "plug it in.")


def test_an_answer_that_takes_too_long_is_ended(start_scripted: Start, wait_for: Wait) -> None:
    server = start_scripted([LONG], pace_s=0.01, request_timeout_s=1)
    reply = ask(server.url)
    assert reply.status_code == 503
    assert "1 s" in reply.json()["error"]["message"]
    streamed = ask(server.url, stream=True)
    frames = streamed.text.strip().split("\n\n")
    assert streamed.status_code == 200
    assert "error" in json.loads(frames[-1].removeprefix("data: "))
    wait_for(lambda: server.num_running == 0 and server.num_wanted == 0)


@pytest.mark.trust("T-SRV-12")
def test_a_step_that_fails_ends_its_answers_and_no_others(
    start_scripted: Start, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_scripted(["Yes."])
    wait_for(lambda: bool(server.models), within_s=10)
    backend = server.models[0].batcher._backend
    step = backend.step

    def fail(feeds: Any) -> Any:
        raise DeviceError("The device is gone.", "ask again.")

    monkeypatch.setattr(backend, "step", fail)
    reply = ask(server.url)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "device_error")
    monkeypatch.setattr(backend, "step", step)
    assert ask(server.url).json()["choices"][0]["message"]["content"] == "Yes."


def test_a_server_that_stops_ends_what_it_answers(start_scripted: Start, wait_for: Wait) -> None:
    server = start_scripted([LONG], pace_s=0.01)
    with ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(ask, server.url, stream=True)
        whole = pool.submit(ask, server.url)
        wait_for(lambda: server.num_running == 2, within_s=10)
        started_s = time.monotonic()
        server.stop()
        assert time.monotonic() - started_s < 5
        assert "The server is stopping" in streamed.result().text
        assert whole.result().status_code == 503


def test_answers_never_cross(start_scripted: Start) -> None:
    """Every client gets the continuation of its own prompt, over many at a time."""
    server = start_scripted(["Fine."], parallel=4, queue=64)
    seen: list[int] = []
    lock = threading.Lock()

    def ask_own(number: int) -> None:
        reply = httpx.post(
            f"{server.url}/v1/completions",
            json={"prompt": f"<{number}>", "max_tokens": 5, "temperature": 0, "user": "u"},
            timeout=30,
        )
        assert reply.json()["usage"]["prompt_tokens"] == len(f"<{number}>")
        with lock:
            seen.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask_own, range(64)))
    assert sorted(seen) == list(range(64))


@pytest.mark.trust("T-GEN-01")
def test_a_client_that_leaves_while_a_model_is_loaded_frees_its_place(
    start_scripted: Start, wait_for: Wait
) -> None:
    server = start_scripted(names=("one", "two"), loads_first=False, holds_load=True)
    connection = send_and_keep(server.port, model="one")
    wait_for(lambda: server.loads == ["one"] and server.num_wanted == 1)
    started_s = time.monotonic()
    connection.close()
    wait_for(lambda: server.num_wanted == 0)
    assert time.monotonic() - started_s < 0.5
    server.may_load.set()  # whoever comes next finds the model
    assert ask(server.url, model="one").status_code == 200
    assert server.loads == ["one"]


@pytest.mark.trust("T-SRV-12")
def test_a_model_that_is_closed_under_a_request_is_no_fault_of_it(
    start_scripted: Start, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stops between the check of a request and its prompt."""
    server = start_scripted(["Yes."])
    wait_for(lambda: bool(server.models), within_s=10)
    [model] = server.models
    open_answer = model.open_answer

    def stop_and_open(*args: Any, **options: Any) -> Any:
        server.server.starting.is_stopping = True
        model.close()
        return open_answer(*args, **options)

    monkeypatch.setattr(model, "open_answer", stop_and_open)
    reply = ask(server.url)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "stopping")
