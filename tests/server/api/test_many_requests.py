"""Load on a server of its own process, whose model says again what it was asked."""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

ECHO_SERVER = Path(__file__).with_name("echo_server.py")
ROOT = Path(__file__).parents[3]
NUM_CLIENTS = 16
LEAVING_SHARE = 0.2
PATH = "/v1/chat/completions"
StartEcho = Callable[..., tuple[str, psutil.Process]]


@pytest.fixture
def start_echo() -> Iterator[StartEcho]:
    """Return a starter of echo servers: address and process."""
    processes: list[subprocess.Popen[str]] = []
    roots = os.pathsep.join(str(ROOT / top) for top in ("runtime", "profiles"))

    def start(*options: object) -> tuple[str, psutil.Process]:
        process = subprocess.Popen(
            [sys.executable, str(ECHO_SERVER), *map(str, options)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": roots},
        )
        processes.append(process)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        return f"http://127.0.0.1:{port}", psutil.Process(process.pid)

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=15)
        assert process.returncode == 0, "the server did not end in order"


def make_body(text: str, *, is_stream: bool = False) -> dict[str, Any]:
    said = [{"role": "user", "content": text}]
    return {"messages": said, "temperature": 0, "stream": is_stream}


async def ask(client: httpx.AsyncClient, nonce: str, *, is_stream: bool) -> str:
    """Return the text of one answer; raise where it does not end exactly once."""
    body = make_body(nonce, is_stream=is_stream)
    if not is_stream:
        reply = await client.post(PATH, json=body)
        [choice] = reply.raise_for_status().json()["choices"]
        assert choice["finish_reason"] == "stop"
        text: str = choice["message"]["content"]
        return text
    texts, ends = [], Counter[str]()
    async with client.stream("POST", PATH, json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                ends["done"] += 1
            elif line:
                [choice] = json.loads(line.removeprefix("data: "))["choices"]
                texts.append(choice["delta"].get("content") or "")
                ends["stop"] += choice["finish_reason"] == "stop"
    assert ends == {"done": 1, "stop": 1}, ends
    return "".join(texts)


async def leave(client: httpx.AsyncClient, nonce: str, moment: float) -> None:
    """Ask, and leave before the answer, or after its first piece."""
    body = make_body(nonce, is_stream=moment < 0.5)
    with pytest.raises((TimeoutError, StopAsyncIteration)):
        async with asyncio.timeout(0.02 * moment), client.stream("POST", PATH, json=body) as reply:
            async for _ in reply.aiter_lines():
                raise StopAsyncIteration


async def load(url: str, num_requests: int, seed: int) -> Counter[str]:
    """Send requests of many clients, each with a nonce of its own; return what became of them."""
    became, draw = Counter[str](), random.Random(seed)
    plan = [
        (f"{seed}-{i}-{draw.random()}", draw.random(), draw.random()) for i in range(num_requests)
    ]
    todo = iter(plan)

    async def work(client: httpx.AsyncClient) -> None:
        for nonce, kind, moment in todo:
            if kind < LEAVING_SHARE:
                await leave(client, nonce, moment)
                became["left"] += 1
                continue
            text = await ask(client, nonce, is_stream=kind < 0.6)
            became["right" if text == nonce else "wrong"] += 1

    async with asyncio.TaskGroup() as tasks, httpx.AsyncClient(base_url=url, timeout=60) as client:
        workers = [tasks.create_task(work(client)) for _ in range(NUM_CLIENTS)]
        await asyncio.gather(*workers)
    return became


@pytest.mark.trust("T-LOAD-01", "T-LOAD-04")
def test_each_of_two_thousand_requests_gets_its_own_answer_once(
    start_echo: StartEcho, cases: Any
) -> None:
    """A fifth of the clients leaves. The server's memory is as after 400."""
    # Room also for those who left and whose end the server, on a busy machine, reads later than
    # what came after them.
    url, process = start_echo("--parallel", 4, "--queue", 4 * NUM_CLIENTS)
    became = asyncio.run(load(url, 400, 0))
    before = process.memory_info().rss, process.num_threads(), process.num_fds()
    became += asyncio.run(load(url, 1_600, 1))
    assert httpx.post(url + PATH, json=make_body("last"), timeout=30).is_success
    after = process.memory_info().rss, process.num_threads(), process.num_fds()
    assert became["right"] + became["left"] == 2_000, became
    assert became["left"] > 300
    cases(2_000, claim="requests")
    assert after[0] - before[0] < 10 * 1024 * 1024
    assert after[1] < 2 * NUM_CLIENTS  # a pool that grows with those who ask at once
    assert after[2] <= before[2] + NUM_CLIENTS


@pytest.mark.trust("T-LOAD-02")
def test_of_a_hundred_at_once_exactly_those_without_a_place_are_refused(
    start_scripted: Callable[..., Any], wait_for: Any
) -> None:
    """One is answered, eight wait. The model is held until all have come."""
    server = start_scripted(["Yes."], parallel=1, queue=8)
    wait_for(lambda: bool(server.models), within_s=10)
    server.gate.clear()

    async def burst() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            asking = [
                asyncio.create_task(client.post(PATH, json=make_body(f"{i}"))) for i in range(100)
            ]
            async with asyncio.timeout(20):
                while sum(task.done() for task in asking) < 91:
                    await asyncio.sleep(0.01)
            server.gate.set()
            return await asyncio.gather(*asking)

    replies = asyncio.run(burst())
    assert Counter(reply.status_code for reply in replies) == {200: 9, 503: 91}
    refused = [reply for reply in replies if reply.status_code == 503]
    assert {reply.json()["error"]["code"] for reply in refused} == {"queue_full"}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)


@pytest.mark.trust("T-LOAD-03")
def test_after_overload_a_server_is_as_it_was(start_echo: StartEcho) -> None:
    url, process = start_echo("--parallel", 2, "--queue", 4, "--pace-s", 0.001)

    def measure_s() -> float:
        """Return the time of one answer, the median of a few."""
        took_s = []
        with httpx.Client(base_url=url, timeout=30) as client:
            for _ in range(5):
                started_s = time.perf_counter()
                assert client.post(PATH, json=make_body("as ever " * 8)).is_success
                took_s.append(time.perf_counter() - started_s)
        return statistics.median(took_s)

    async def overload(seconds: float) -> Counter[int]:
        statuses = Counter[int]()
        end_s = time.monotonic() + seconds

        async def work(client: httpx.AsyncClient) -> None:
            while time.monotonic() < end_s:
                reply = await client.post(PATH, json=make_body("too much " * 5))
                statuses[reply.status_code] += 1
                await asyncio.sleep(0.01)

        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(work(client) for _ in range(NUM_CLIENTS)))
        return statuses

    before_s = measure_s()
    statuses = asyncio.run(overload(4))
    assert set(statuses) == {200, 503}, statuses
    assert statuses[503] > 50
    assert min(measure_s() for _ in range(3)) < 1.5 * before_s + 0.02
    assert process.num_threads() < 2 * NUM_CLIENTS
