"""What a scripted model says, as it comes over the wire: characters, cuts, ends and no numbers."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

Start = Callable[..., Any]
TEXTS = {
    "emoji": "a👋b👋🏽",
    "family": "👨‍👩‍👧‍👦 und 🏳️‍🌈",  # several characters that are shown as one
    "flags": "🇫🇷🇯🇵",
    "accents": "e\u0301 a\u0308\u0323 Z\u0351\u036b",
    "cjk": "日本語と漢字、한국어。",
    "right to left": "שלום مرحبا",
    "old": "𝔘𝔫𝔦 𐍈 𒀀",
    "one byte": "plain",
}
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(start_scripted: Start, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """Return a client of a server that says what the test is parametrised with."""
    answer = request.param
    with httpx.Client(base_url=start_scripted([answer]).url, timeout=30) as made:
        yield made


def ask(client: httpx.Client, **options: Any) -> tuple[str, str]:
    """Return a whole answer's text and why it ended."""
    body = {"messages": HI, "temperature": 0, **options}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    choice = json.loads(reply.content.decode("utf-8", "strict"))["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def stream(client: httpx.Client, **options: Any) -> tuple[list[str], str]:
    """Return a stream's pieces, each a frame that is JSON in UTF-8 by itself, and why it ended."""
    body = {"messages": HI, "temperature": 0, "stream": True, **options}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    *frames, done = reply.content.removesuffix(b"\n\n").split(b"\n\n")
    assert done == b"data: [DONE]"
    choices = [
        json.loads(frame.removeprefix(b"data: ").decode("utf-8", "strict"))["choices"][0]
        for frame in frames
    ]
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert len(ends) == 1
    return [choice["delta"].get("content") or "" for choice in choices], ends[0]


@pytest.mark.trust("T-GEN-04", "T-GEN-05")
@pytest.mark.parametrize(
    ("client", "text"), [(text, text) for text in TEXTS.values()], ids=TEXTS, indirect=["client"]
)
def test_characters_over_several_tokens_come_whole_wherever_an_answer_ends(
    client: httpx.Client, text: str, cases: Any
) -> None:
    """One token is one byte here. What is cut off within a character is one U+FFFD."""
    pieces, reason = stream(client)
    assert ("".join(pieces), reason) == (text, "stop")
    assert ask(client) == (text, "stop")
    assert not any("\ufffd" in piece for piece in pieces)
    raw = text.encode()
    for length in range(1, len(raw)):
        expected = raw[:length].decode("utf-8", "replace")
        pieces, reason = stream(client, max_tokens=length)
        assert ("".join(pieces), reason) == (expected, "length")
        assert ask(client, max_tokens=length) == (expected, "length")
        cases(2)


@pytest.mark.trust("T-GEN-06")
@pytest.mark.parametrize(
    ("client", "stop", "shown"),
    [
        ("Hello, world", "o, w", "Hell"),
        ("Hello, world", ["world", "lo"], "Hel"),
        ("Hello, world", ["Hello, world!", "x"], "Hello, world"),
        ("Say 👋🏽 now", "👋", "Say "),
        ("Say 👋🏽 now", "🏽", "Say 👋"),
        ("日本語", "本", "日"),
        ("aaaab", "aab", "aa"),
        ("Hello", [f"{i}" for i in range(15)] + ["ell"], "H"),
        ("Hello", "H", ""),
    ],
    indirect=["client"],
)
def test_a_stop_text_cuts_exactly(client: httpx.Client, stop: Any, shown: str) -> None:
    assert ask(client, stop=stop) == (shown, "stop")
    pieces, reason = stream(client, stop=stop)
    assert ("".join(pieces), reason) == (shown, "stop")


@pytest.mark.trust("T-GEN-07")
@pytest.mark.parametrize("client", ["x" * 5_000], ids=["endless"], indirect=True)
def test_an_answer_that_does_not_end_is_ended(client: httpx.Client) -> None:
    assert ask(client, max_tokens=7) == ("x" * 7, "length")
    body = {"messages": HI, "temperature": 0}
    reply = client.post("/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["total_tokens"] == 4_096


@pytest.mark.trust("T-GEN-08")
@pytest.mark.parametrize("client", ["x"], indirect=True)
def test_a_prompt_at_the_edge_of_the_window_and_beyond(client: httpx.Client) -> None:
    """One token is one byte, and the window holds 4,096."""

    def send(num_tokens: int) -> httpx.Response:
        body = {"prompt": "a" * num_tokens, "max_tokens": 3}
        return client.post("/v1/completions", json=body)

    assert send(4_095).json()["usage"]["total_tokens"] == 4_096
    for num_tokens in (4_096, 4_097, 409_600):
        reply = send(num_tokens)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] == "prompt"
        assert "4,096" in error["message"]


@pytest.mark.trust("T-GEN-08")
@pytest.mark.parametrize("client", ["x"], indirect=True)
@pytest.mark.parametrize("text", ["x" * 8_000_000, "word " * 1_600_000], ids=["letters", "words"])
def test_a_prompt_of_megabytes_is_refused_at_once(client: httpx.Client, text: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    headers = {"content-type": "application/json"}
    took_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        reply = client.post("/v1/chat/completions", content=body, headers=headers)
        took_s.append(time.perf_counter() - started_s)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages")
        assert "holds 4,096" in reply.json()["error"]["message"]
    assert min(took_s) < 1
    reply = client.post("/v1/chat/completions", content=body + b" " * 500_000, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.trust("T-GEN-09")
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("step", [0, 1, 4])
def test_scores_that_are_no_numbers_end_one_answer_with_an_error(
    start_scripted: Start, wait_for: Any, monkeypatch: pytest.MonkeyPatch, poison: float, step: int
) -> None:
    """What was said before stays; the stream ends with the error, and the next answer is whole."""
    server = start_scripted(["Hello."])
    wait_for(lambda: bool(server.models), within_s=10)
    batch_backend = server.models[0].batcher._backend
    forward, num_calls = batch_backend._backend.forward, 0

    def fail(token_ids: Any) -> Any:
        nonlocal num_calls
        logits = forward(token_ids)
        num_calls += 1
        return np.full_like(logits, poison) if num_calls == step + 1 else logits

    monkeypatch.setattr(batch_backend._backend, "forward", fail)
    body = {"messages": HI, "temperature": 0}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        whole = client.post("/v1/chat/completions", json=body)
        assert (whole.status_code, whole.json()["error"]["code"]) == (500, "parity_error")
        num_calls = 0
        streamed = client.post("/v1/chat/completions", json={**body, "stream": True})
        frames = [json.loads(line[6:]) for line in streamed.text.strip().split("\n\n")]
        assert frames[-1]["error"]["code"] == "parity_error"
        said = "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames[:-1])
        assert said == "Hello."[:step]
        monkeypatch.setattr(batch_backend._backend, "forward", forward)
        assert ask(client) == ("Hello.", "stop")


@pytest.mark.trust("T-SRV-04")
def test_a_bias_for_one_request_changes_no_other(start_scripted: Start, wait_for: Any) -> None:
    """Beside a running answer: ids beyond the logits refused, and a right one for itself only."""
    server = start_scripted(["Hello there."], parallel=4)
    wait_for(lambda: bool(server.models), within_s=10)
    width = server.models[0].vocab_size
    found: list[tuple[str, str]] = []
    with httpx.Client(base_url=server.url, timeout=30) as client:
        server.gate.clear()
        other = threading.Thread(target=lambda: found.append(ask(client)))
        other.start()
        wait_for(lambda: server.num_running == 1)
        for token_id in (width, width + 1, 151_936, 999_999_999):
            reply = client.post(
                "/v1/chat/completions",
                json={"messages": HI, "logit_bias": {str(token_id): 5}},
            )
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logit_bias")
        biased = threading.Thread(
            target=lambda: found.append(ask(client, logit_bias={"120": 100}, max_tokens=5))
        )
        biased.start()
        wait_for(lambda: server.num_wanted == 2)
        server.gate.set()
        other.join(), biased.join()
        assert sorted(found) == [("Hello there.", "stop"), ("xxxxx", "length")]
        assert client.post(
            "/v1/chat/completions", json={"messages": HI, "logit_bias": {str(width - 1): -5}}
        ).is_success
