"""Load a server with the demo model and count what goes wrong. Last line: JSON.

    python scripts/bench_server.py PACKAGE [--requests 2000] [--concurrency 16] [--rounds 5]

Three parts, each with a server of its own over loopback:

- load: requests, streamed and whole, some of whose clients leave; each answer is compared with the
  one its prompt got alone, and the server's memory with what it was before;
- full: more requests than there are places, all at once, and again when the places are taken; how
  many are refused, and how fast;
- overhead: one long answer through the server and from the library, in turns; what the server adds
  to a token.

Ends with 1 where a bar is missed.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from qwen_edge.runtime import load_batch
from qwen_edge.runtime.machine.process_memory import read_process_memory
from qwen_edge.runtime.package import read_manifest

NUM_PROMPTS = 200
LEAVING_SHARE = 0.1
NUM_RUNNING, NUM_WAITING, NUM_BURST = 2, 6, 40
LONG_TOKENS = 400
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
BARS = {"memory_growth": 0.05, "slowest_refusal_s": 0.05, "overhead_ms_per_token": 1.0}


@dataclass
class Outcome:
    """What became of many requests."""

    right: int = 0
    wrong: int = 0
    left: int = 0
    failures: list[str] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)


@contextlib.contextmanager
def serving(package: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Run a server as a process; yield its address and process number."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "qwen_edge.cli", "serve", str(package), "--port", "0"]
        command += ["--ready-file", str(ready), "--quiet", *options]
        process = subprocess.Popen(command)
        try:
            while not ready.is_file():
                if process.poll() is not None:
                    raise SystemExit("the server did not start")
                time.sleep(0.05)
            yield json.loads(ready.read_bytes())["url"], process.pid
        finally:
            process.terminate()
            process.wait(30)


def make_body(number: int, *, is_stream: bool) -> dict[str, Any]:
    """Return the request of one prompt; its answer names what only this prompt holds."""
    name, age = NAMES[number % len(NAMES)], 11 + number // len(NAMES)
    return {
        "messages": [{"role": "user", "content": f"Extract: {name} is {age} years old."}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": SCHEMA},
        },
        "temperature": 0,
        "max_tokens": 200,
        "stream": is_stream,
    }


async def ask(client: httpx.AsyncClient, number: int, *, is_stream: bool) -> str:
    """Return the answer's text; raise where it did not end as it should."""
    body = make_body(number, is_stream=is_stream)
    if not is_stream:
        reply = await client.post("/v1/chat/completions", json=body)
        reply.raise_for_status()
        content: str = reply.json()["choices"][0]["message"]["content"]
        return content
    texts, ends = [], 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                ends += 1
            elif line:
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                texts.append(choice["delta"].get("content") or "")
                ends += choice["finish_reason"] is not None
    if ends != 2:
        raise ValueError(f"the stream ended {ends} times")
    return "".join(texts)


async def leave(client: httpx.AsyncClient, number: int) -> None:
    """Ask, and leave after the first line."""
    body = make_body(number, is_stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for _ in reply.aiter_lines():
            break


async def load_server(
    url: str, expected: Sequence[str], num_requests: int, concurrency: int
) -> Outcome:
    """Send many requests, so many at a time."""
    outcome, draw = Outcome(), random.Random(7)
    numbers = iter(range(num_requests))
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def work() -> None:
            for index in numbers:
                number, kind = draw.randrange(len(expected)), draw.random()
                try:
                    if kind < LEAVING_SHARE:
                        await leave(client, number)
                        outcome.left += 1
                        continue
                    found = await ask(client, number, is_stream=kind < 0.6)
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    outcome.failures.append(f"{type(error).__name__}: {error}")
                    continue
                outcome.answered.append(index)
                outcome.right += found == expected[number]
                outcome.wrong += found != expected[number]

        await asyncio.gather(*(work() for _ in range(concurrency)))
    return outcome


async def ask_each(url: str, count: int) -> list[str]:
    """Return the answers to all prompts, one after the other."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return [await ask(client, number, is_stream=False) for number in range(count)]


def measure_load(package: Path, num_requests: int, concurrency: int) -> dict[str, Any]:
    """Return what became of many requests, and of the server's memory."""
    with serving(package, "--queue", str(concurrency)) as (url, pid):
        expected = asyncio.run(ask_each(url, NUM_PROMPTS))
        fresh = _private_bytes(pid)
        # Twice the same before: the engine keeps what it prepared for each size of call, until it
        # has met them all. A leak would go on.
        for _ in range(2):
            asyncio.run(load_server(url, expected, num_requests, concurrency))
        before = _private_bytes(pid)
        started_s = time.perf_counter()
        outcome = asyncio.run(load_server(url, expected, num_requests, concurrency))
        seconds = time.perf_counter() - started_s
        time.sleep(1)
        after = _private_bytes(pid)
    return {
        "requests": num_requests,
        "concurrency": concurrency,
        "answered": len(outcome.answered),
        "answered_twice": len(outcome.answered) - len(set(outcome.answered)),
        "mixed_up": outcome.wrong,
        "left_by_their_clients": outcome.left,
        "lost": len(outcome.failures),
        "failures": outcome.failures[:5],
        "different_answers": len(set(expected)),
        "requests_per_s": round(num_requests / seconds, 1),
        "private_mb_fresh": round(fresh / 1e6, 1),
        "private_mb_before": round(before / 1e6, 1),
        "private_mb_after": round(after / 1e6, 1),
        "memory_growth": round(after / before - 1, 4),
    }


def _private_bytes(pid: int) -> int:
    memory = read_process_memory(pid)
    assert memory is not None
    return memory.private_bytes


class BareClient:
    """Sends one request over sockets: a client's own work for forty would be counted otherwise.

    Args:
        url: The server's.
        bias: Forbids that an answer ends.
    """

    def __init__(self, url: str, bias: dict[str, float]) -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        messages = [{"role": "user", "content": "Hello"}]
        body = json.dumps({"messages": messages, "max_tokens": 600, "logit_bias": bias}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body

    async def send(self, count: int) -> list[tuple[int, float]]:
        """Send so many at once; return the status of each, and the seconds until it came."""
        # Connections are made before the clock runs.
        streams = [await asyncio.open_connection(self._host, self._port) for _ in range(count)]
        return list(await asyncio.gather(*(self._send(*stream) for stream in streams)))

    async def _send(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, float]:
        started_s = time.perf_counter()
        writer.write(self._request)
        status = int((await reader.readline()).split()[1])
        seconds = time.perf_counter() - started_s
        writer.close()
        return status, seconds


async def overfill(url: str, bias: dict[str, float]) -> dict[str, list[tuple[int, float]]]:
    """Send more than there are places: all of them at once, and when the places are taken."""
    client = BareClient(url, bias)
    rush = await client.send(NUM_BURST)
    holding = asyncio.create_task(client.send(NUM_RUNNING + NUM_WAITING))
    await asyncio.sleep(0.2)
    late = await client.send(NUM_BURST)
    assert not holding.done(), "the places were free again too early"
    return {"rush": rush, "held": await holding, "late": late}


def forbid_end(package: Path) -> dict[str, float]:
    """Return a bias with which an answer goes on up to its limit."""
    manifest = read_manifest(package)
    return {str(token): -100.0 for token in manifest.generation.eos_token_ids}


def measure_full(package: Path, rounds: int) -> dict[str, Any]:
    """Return how many of too many requests were refused, and how fast."""
    options = ("--parallel", str(NUM_RUNNING), "--queue", str(NUM_WAITING))
    counts = set[tuple[int, int, int, int]]()
    medians, slowest_in_rush, slowest = [], [], []
    with serving(package, *options) as (url, _):
        for _ in range(rounds):
            replies = asyncio.run(overfill(url, forbid_end(package)))
            rush, held, late = (replies[name] for name in ("rush", "held", "late"))
            refused = [seconds for status, seconds in late if status == 503]
            in_rush = [seconds for status, seconds in rush if status == 503]
            answered = sum(status == 200 for status, _ in held)
            counts.add((NUM_BURST - len(in_rush), len(in_rush), len(refused), answered))
            medians.append(statistics.median(refused))
            slowest.append(max(refused))
            slowest_in_rush.append(max(in_rush))
    return {
        "rounds": rounds,
        "places": NUM_RUNNING + NUM_WAITING,
        "sent_at_once": NUM_BURST,
        "sent_when_full": NUM_BURST,
        "answered_and_refused_at_once_refused_when_full_and_answered_that_held": sorted(counts),
        "median_refusal_s": round(statistics.median(medians), 4),
        "slowest_refusal_s": round(statistics.median(slowest), 4),
        "slowest_of_all_rounds_s": round(max(slowest), 4),
        "slowest_at_once_s": round(statistics.median(slowest_in_rush), 4),
    }


def measure_overhead(package: Path, rounds: int) -> dict[str, Any]:
    """Return what the server adds to each token of one answer at a time."""
    bias = forbid_end(package)
    options: Any = {
        "max_new_tokens": LONG_TOKENS,
        "sampling": {
            "temperature": 0.0,
            "logit_bias": {int(token): value for token, value in bias.items()},
        },
    }
    messages = [{"role": "user", "content": "Hello"}]
    body = {
        "messages": messages,
        "max_tokens": LONG_TOKENS,
        "temperature": 0,
        "logit_bias": bias,
        "stream": True,
    }
    added, library_ms, server_ms = [], [], []
    with (
        serving(package) as (url, _),
        load_batch(package, reuses_answers=True) as model,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        for round_index in range(rounds + 1):
            started_s = time.perf_counter()
            own = [event.token_ids for event in model.stream(messages, **options)]
            library_s = time.perf_counter() - started_s
            num_tokens = sum(map(len, own))
            started_s = time.perf_counter()
            with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                num_frames = sum(bool(line) for line in reply.iter_lines())
            server_s = time.perf_counter() - started_s
            if round_index:  # the first one warms both up
                added.append((server_s - library_s) / num_tokens * 1000)
                library_ms.append(library_s / num_tokens * 1000)
                server_ms.append(server_s / num_tokens * 1000)
    return {
        "rounds": rounds,
        "tokens": num_tokens,
        "frames": num_frames,
        "library_ms_per_token": round(statistics.median(library_ms), 4),
        "server_ms_per_token": round(statistics.median(server_ms), 4),
        "overhead_ms_per_token": round(statistics.median(added), 4),
    }


def find_misses(load: dict[str, Any], full: dict[str, Any], overhead: dict[str, Any]) -> list[str]:
    """Return which bars were missed."""
    misses = [
        f"{name} is {load[name]}"
        for name in ("answered_twice", "mixed_up", "lost")
        if load[name] != 0
    ]
    if load["memory_growth"] > BARS["memory_growth"]:
        misses.append(f"memory_growth is {load['memory_growth']}")
    counts = full["answered_and_refused_at_once_refused_when_full_and_answered_that_held"]
    places = full["places"]
    if counts != [(places, NUM_BURST - places, NUM_BURST, places)]:
        misses.append(f"answered and refused were {counts}")
    if full["slowest_refusal_s"] > BARS["slowest_refusal_s"]:
        misses.append(f"slowest_refusal_s is {full['slowest_refusal_s']}")
    if overhead["overhead_ms_per_token"] > BARS["overhead_ms_per_token"]:
        misses.append(f"overhead_ms_per_token is {overhead['overhead_ms_per_token']}")
    return misses


def main() -> int:
    """Measure, print, and say whether all bars are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="of the demo model")
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    full = measure_full(arguments.package, arguments.rounds)
    print(json.dumps(full), file=sys.stderr)
    overhead = measure_overhead(arguments.package, arguments.rounds)
    print(json.dumps(overhead), file=sys.stderr)
    load = measure_load(arguments.package, arguments.requests, arguments.concurrency)
    misses = find_misses(load, full, overhead)
    print(json.dumps({"load": load, "full": full, "overhead": overhead, "misses": misses}))
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
