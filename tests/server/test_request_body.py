"""Bodies: how much, how long, and which JSON."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.refusals import ClientLeftError, HttpRefusal
from qwen_edge.server.request_body import (
    parse_body,
    read_body,
    wait_until_client_leaves,
)

LIMITS = ServerLimits(max_body_bytes=1_000_000, body_s=0.4, body_grace_s=0.1)
END = {"type": "http.disconnect"}


def receiver(parts: Sequence[bytes | float], *, ends: bool = True) -> Any:
    """Return an ASGI receive that gives parts of a body; numbers are seconds between them."""
    messages: list[Any] = list(parts)

    async def receive() -> dict[str, Any]:
        while messages:
            part = messages.pop(0)
            if isinstance(part, float):
                await asyncio.sleep(part)
                continue
            more = bool(messages) or not ends
            return {"type": "http.request", "body": part, "more_body": more}
        if ends:
            return END
        await asyncio.sleep(60)
        raise AssertionError

    return receive


def refusal_of(body: bytes, limits: ServerLimits = LIMITS) -> HttpRefusal:
    with pytest.raises(HttpRefusal) as caught:
        parse_body(body, limits)
    assert caught.value.status == 400
    return caught.value


def test_a_body_in_pieces_is_one_object() -> None:
    text = '{"text": "Grüße 🙂", "list": [1, 2.5, null, true, {"a": {}}]}'
    pieces = [bytes([byte]) for byte in text.encode()]
    body = asyncio.run(read_body(receiver(pieces), LIMITS))
    assert parse_body(body, LIMITS) == json.loads(text)


def test_an_escaped_pair_is_a_character() -> None:
    assert parse_body(rb'{"a": "\ud83d\ude42"}', LIMITS) == {"a": "🙂"}


@pytest.mark.trust("T-SRV-01")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is empty"),
        (b"hello", "not JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"{", "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e400}', "too large"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"b": {"a": 1, "\\u0061": 2}}', "twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'{"a": "\ntext"}', "not JSON"),
        (b'{"a": ' + b"9" * 65 + b"}", "64 digits"),
        (b'{"a": 0.' + b"9" * 65 + b"}", "64 digits"),
    ],
)
def test_other_json_is_refused_with_the_reason(body: bytes, words: str) -> None:
    refusal = refusal_of(body)
    assert words in refusal.problem
    assert refusal.code == "invalid_json"
    assert refusal.fix


def test_digits_in_texts_are_no_numbers() -> None:
    digits = "9" * 5_000
    assert parse_body(json.dumps({"a": digits}).encode(), LIMITS) == {"a": digits}


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'], ids=["lists", "objects", "both"])
def test_depth_is_counted_before_parsing(opening: bytes) -> None:
    assert refusal_of(b'{"a": ' + opening * 5_000).code == "json_too_deep"


def test_the_deepest_that_fits_and_one_more() -> None:
    limits = replace(LIMITS, max_json_depth=10)
    assert parse_body(b'{"a": ' + b"[" * 9 + b"]" * 9 + b"}", limits)
    assert refusal_of(b'{"a": ' + b"[" * 10 + b"]" * 10 + b"}", limits).code == "json_too_deep"


@pytest.mark.trust("T-SRV-01")
@pytest.mark.parametrize("depth", [1_000, 10_000, 400_000])
def test_bottomless_bodies_end_no_process(depth: int) -> None:
    assert refusal_of(b'{"a": ' + b"[" * depth).code in {"json_too_deep", "json_too_large"}


def test_brackets_and_commas_in_texts_do_not_count() -> None:
    limits = replace(LIMITS, max_json_values=10, max_json_depth=2)
    text = '[{,"\\' * 1_000 + "\\"
    assert parse_body(json.dumps({"a": text, "b": [text]}).encode(), limits) == {
        "a": text,
        "b": [text],
    }


def test_a_backslash_at_the_end_of_a_text_does_not_hide_what_follows() -> None:
    limits = replace(LIMITS, max_json_depth=4)
    body = rb'{"a": "x\\", "b": ' + b"[" * 10 + b"]" * 10 + b"}"
    assert refusal_of(body, limits).code == "json_too_deep"


@pytest.mark.parametrize(
    "many",
    [
        b'{"a": [' + b"1," * 100 + b"1]}",
        b'{"a": [' + b"[]," * 100 + b"1]}",
        b'{"a": [' + b'"",' * 100 + b"1]}",
        b'""' * 1_000,
    ],
    ids=["numbers", "lists", "texts", "quotes"],
)
def test_values_are_counted(many: bytes) -> None:
    assert refusal_of(many, replace(LIMITS, max_json_values=50)).code == "json_too_large"


@pytest.mark.parametrize(
    "body",
    [b'""', b"[", b"{},", b'"\\"', b'\\"\\\\"', b" ", b'{"', b"9" * 64 + b","],
    ids=["quotes", "lists", "objects", "escapes", "mixed", "spaces", "keys", "numbers"],
)
def test_no_bytes_take_long(body: bytes) -> None:
    """Counted in time of this thread: the machine may be busy."""
    many = b'{"a": [' + body * (1_000_000 // len(body))
    start = time.thread_time()
    refusal_of(many)
    assert time.thread_time() - start < 0.5


@pytest.mark.trust("T-SRV-01")
def test_a_body_beyond_the_limit_is_not_read_to_its_end() -> None:
    given = 0

    async def receive() -> dict[str, Any]:
        nonlocal given
        given += 1
        return {"type": "http.request", "body": bytes(300_000), "more_body": True}

    with pytest.raises(HttpRefusal) as caught:
        asyncio.run(read_body(receive, LIMITS))
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")
    assert given == 4


@pytest.mark.trust("T-SRV-01")
def test_a_body_that_does_not_end_is_given_up() -> None:
    start = time.monotonic()
    with pytest.raises(HttpRefusal) as caught:
        asyncio.run(read_body(receiver([bytes(100_000)], ends=False), LIMITS))
    assert (caught.value.status, caught.value.code) == (408, "body_too_slow")
    assert 0.3 < time.monotonic() - start < 5


def test_a_body_that_drips_is_given_up_before_the_whole_time() -> None:
    """One byte now and then keeps other servers waiting for hours."""
    limits = replace(LIMITS, body_s=30.0)
    start = time.monotonic()
    with pytest.raises(HttpRefusal, match="did not end in time"):
        asyncio.run(read_body(receiver([b"x", 0.03] * 1_000), limits))
    assert time.monotonic() - start < 5


def test_a_slow_but_steady_body_is_read() -> None:
    limits = replace(LIMITS, body_s=30.0, min_body_bytes_per_s=100)
    parts: list[bytes | float] = [bytes(100), 0.02] * 10
    assert len(asyncio.run(read_body(receiver([*parts, b""]), limits))) == 1_000


def test_a_client_that_leaves_is_no_refusal() -> None:
    async def receive() -> dict[str, Any]:
        return END

    with pytest.raises(ClientLeftError):
        asyncio.run(read_body(receive, LIMITS))


def test_waiting_for_the_client_to_leave() -> None:
    messages = [{"type": "http.request", "body": b""}, END]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    asyncio.run(wait_until_client_leaves(receive))
    assert messages == []
