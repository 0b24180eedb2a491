"""Attacks over raw sockets against a real server: nothing served, nothing hung.

The limits of time are tenths of a second here instead of half a minute.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from qwen_edge.server.connection import GuardedConnection
from qwen_edge.server.limits import ServerLimits

HOST = b"Host: localhost\r\n"
HEALTH = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
FAST = ServerLimits(
    head_s=0.3,
    body_s=0.5,
    body_grace_s=0.3,
    idle_s=0.3,
    stall_s=0.3,
    linger_s=0.3,
    stop_s=1.0,
    max_connections=24,
)
# Memory that a test server may grow by; attacks send much more. The process has other tests' models
# too, whose pages come and go: 25 MB were seen.
MAX_GROWTH_BYTES = 48_000_000


@pytest.fixture(scope="module")
def kept_fast_server(tiny_app: Any) -> Iterator[Any]:
    server = tiny_app.ServerInThread(limits=FAST)
    yield server
    server.stop()


@pytest.fixture
def fast_server(kept_fast_server: Any) -> Any:
    """Return a server with short limits; others attacked it before."""
    kept_fast_server.app.seen.clear()
    kept_fast_server.app.ended.clear()
    return kept_fast_server


def post(path: bytes = b"/v1/echo", *, headers: bytes = b"", body: bytes = b"{}") -> bytes:
    """Return a request with a body, as clients send it."""
    head = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    return head + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*chunks: bytes) -> bytes:
    """Return the beginning of a request whose body comes in chunks."""
    head = b"POST /v1/echo HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + body


def answers_soon(connect: Any, server: Any, within_s: float = 1.0) -> None:
    """Check that an ordinary request is answered; one of a few, as the machine may be busy."""
    took_s: list[float] = []
    while not took_s or (min(took_s) > within_s and len(took_s) < 5):
        start = time.monotonic()
        assert connect(server).send(HEALTH).read().status == 200
        took_s.append(time.monotonic() - start)
    assert min(took_s) < within_s


def test_ordinary_requests_are_answered_one_after_another(shared_server: Any, connect: Any) -> None:
    wire = connect(shared_server)
    for index in range(3):
        body = json.dumps({"index": index}).encode()
        reply = wire.send(post(body=body)).read()
        assert (reply.status, reply.body) == (200, body)
        assert "server" not in reply.headers
    reply = wire.send(chunked(b'{"a"', b": 1}") + b"0\r\n\r\n").read()
    assert json.loads(reply.body) == {"a": 1}


# Hosts, origins and types, on the wire


@pytest.mark.trust("T-SEC-02")
@pytest.mark.parametrize(
    "host",
    [b"evil.example", b"evil.localhost.example", b"127.0.0.1.nip.io", b"0.0.0.0", b"evil\r\n x"],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_rebound_names_get_nothing(
    shared_server: Any, connect: Any, host: bytes, version: bytes
) -> None:
    shared_server.app.seen.clear()
    head = b" HTTP/" + version + b"\r\nHost: " + host + b"\r\n"
    for request in (b"GET / ", b"GET /v1/models ", b"OPTIONS /v1/echo "):
        wire = connect(shared_server).send(request.rstrip() + head + b"\r\n")
        assert wire.read().status == 403
        assert wire.is_closed()
    # The body is neither waited for nor read.
    lengths = b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    wire = connect(shared_server).send(b"POST /v1/echo" + head + lengths)
    assert wire.read().status == 403
    assert shared_server.app.seen == []


@pytest.mark.trust("T-SEC-02")
@pytest.mark.parametrize(
    "hosts",
    [b"", b"Host: localhost\r\nHost: localhost\r\n", b"Host: localhost\r\nhost: evil.example\r\n"],
    ids=["none", "two", "two different"],
)
def test_no_host_and_two(shared_server: Any, connect: Any, hosts: bytes) -> None:
    shared_server.app.seen.clear()
    reply = connect(shared_server).send(b"GET / HTTP/1.1\r\n" + hosts + b"\r\n").read()
    assert reply.status == 400
    assert shared_server.app.seen == []


@pytest.mark.trust("T-SEC-03")
@pytest.mark.parametrize("origin", [b"http://evil.example", b"null"])
def test_foreign_pages_get_nothing(shared_server: Any, connect: Any, origin: bytes) -> None:
    shared_server.app.seen.clear()
    headers = b"Origin: " + origin + b"\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    asks = b"Access-Control-Request-Method: POST\r\n"
    for request in (
        b"GET /v1/models HTTP/1.1\r\n" + HOST + headers + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + HOST + headers + upgrade + b"\r\n",
        b"OPTIONS /v1/echo HTTP/1.1\r\n" + HOST + headers + asks + b"\r\n",
        post(headers=headers),
    ):
        reply = connect(shared_server).send(request).read()
        assert (reply.status, reply.code) == (403, "origin_not_allowed")
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]
    assert shared_server.app.seen == []


@pytest.mark.trust("T-SEC-04")
def test_bodies_that_need_no_preflight_are_refused(shared_server: Any, connect: Any) -> None:
    shared_server.app.seen.clear()
    for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"):
        request = post().replace(b"application/json", kind)
        assert connect(shared_server).send(request).read().status == 415
    assert shared_server.app.seen == []


# Paths


@pytest.mark.trust("T-SEC-01")
@pytest.mark.parametrize(
    "path",
    [
        b"//",
        b"//evil.example/v1/models",
        b"/../../etc/passwd",
        b"/%2e%2e/%2e%2e/etc/passwd",
        b"/%2E%2E%2Fetc/passwd",
        b"/..%2f..%2fetc/passwd",
        b"/%252e%252e/etc/passwd",
        b"/..%5c..%5csecret",
        b"/v1/models/%00",
        b"/v1/models%0d%0aX-Evil:1",
        b"/%ff%fe",
        b"/%c0%ae%c0%ae/etc/passwd",
        b"http://localhost/health",
        b"http://evil.example/health",
        b"health",
        b"*",
        b"/a" * 4_000,
        b"/" * 8_000,
    ],
    ids=lambda path: path[:30].decode(),
)
def test_paths_of_two_meanings_do_not_arrive(shared_server: Any, connect: Any, path: bytes) -> None:
    shared_server.app.seen.clear()
    reply = connect(shared_server).send(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n").read()
    assert reply.status in {400, 404}
    assert b"passwd" not in reply.body
    assert len(str(reply.headers)) < 1_000
    assert shared_server.app.seen in ([], ["GET " + path.decode()])  # the long one may arrive


@pytest.mark.parametrize("method", [b"PUT", b"TRACE", b"CONNECT", b"PROPFIND", b"get"])
def test_other_methods_do_not_arrive(shared_server: Any, connect: Any, method: bytes) -> None:
    shared_server.app.seen.clear()
    reply = connect(shared_server).send(method + b" / HTTP/1.1\r\n" + HOST + b"\r\n").read()
    assert reply.status == 405
    assert shared_server.app.seen == []


# No HTTP, and two requests in one


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\x00" * 100,
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9.9\r\n\r\n",
        b"GET  /  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: x\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2, 3\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        b"Content-Length: 3\r\n\r\n{}",
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Transfer-Encoding: identity\r\n\r\n",
    ],
    ids=lambda value: value[:60].decode("latin-1"),
)
def test_what_is_no_request_is_refused_and_ends(
    shared_server: Any, connect: Any, request_bytes: bytes
) -> None:
    shared_server.app.seen.clear()
    wire = connect(shared_server).send(request_bytes)
    reply = wire.read()
    assert reply.status in {400, 501, 505}
    assert reply.code is not None
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert wire.is_closed(3)
    assert shared_server.app.seen == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_body_with_two_ends_does_not_smuggle(
    shared_server: Any, connect: Any, order: int
) -> None:
    """Whoever stands between would see one request where the server sees two."""
    shared_server.app.seen.clear()
    lengths = [b"Content-Length: 6\r\n", b"Transfer-Encoding: chunked\r\n"][::order]
    head = b"POST /v1/echo HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    wire = connect(shared_server).send(head + b"".join(lengths) + b"\r\n0\r\n\r\n" + HEALTH)
    assert wire.read().status == 400
    assert wire.is_closed()
    assert shared_server.app.seen == []


@pytest.mark.trust("T-SRV-01")
def test_a_length_that_is_too_short_starts_no_second_request(
    shared_server: Any, connect: Any
) -> None:
    shared_server.app.seen.clear()
    request = post(body=b'{"a": 1}').replace(b"Content-Length: 8", b"Content-Length: 2")
    wire = connect(shared_server).send(request, b"\r\n\r\n")
    assert wire.read().status == 400  # two bytes of it are no JSON
    assert wire.read().status == 400  # and the rest is no HTTP
    assert wire.is_closed()
    assert shared_server.app.seen == ["POST /v1/echo"]


def test_requests_sent_at_once_are_answered_in_order(shared_server: Any, connect: Any) -> None:
    wire = connect(shared_server)
    wire.send(b"".join(post(body=b'{"n": %d}' % n) for n in range(20)))
    assert [json.loads(wire.read().body)["n"] for _ in range(20)] == list(range(20))


def test_http_1_0_is_answered_and_closed(shared_server: Any, connect: Any) -> None:
    for head in (b"GET /health HTTP/1.0\r\n\r\n", b"GET /health HTTP/1.0\r\n" + HOST + b"\r\n"):
        wire = connect(shared_server).send(head)
        assert wire.read().status == 200
        assert wire.is_closed()
    request = chunked(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n"
    assert connect(shared_server).send(request).read().status == 400


def test_bad_chunks_in_a_body_that_is_being_read(shared_server: Any, connect: Any) -> None:
    wire = connect(shared_server).send(chunked(b'{"a":'))
    time.sleep(0.05)
    assert wire.send(b"zz\r\n").read().status == 400
    assert wire.is_closed()
    answers_soon(connect, shared_server)


def test_bad_chunks_after_the_answer_has_begun(shared_server: Any, connect: Any) -> None:
    """A second answer in the midst of the first would be read as a part of it."""
    request = chunked(b"{}").replace(b"/v1/echo", b"/v1/begun")
    wire = connect(shared_server).send(request)
    received: bytes = wire.socket.recv(65_536)
    wire.send(b"zz\r\n")
    try:
        while part := wire.socket.recv(65_536):
            received += part
    except ConnectionError:
        pass
    assert received.count(b"HTTP/1.1") == 1
    assert b"bad_request" not in received


def test_headers_do_not_decide_who_a_client_is(shared_server: Any, connect: Any) -> None:
    headers = b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n"
    reply = (
        connect(shared_server)
        .send(b"GET /v1/client HTTP/1.1\r\n" + HOST + headers + b"\r\n")
        .read()
    )
    assert json.loads(reply.body) == {"client": "127.0.0.1", "scheme": "http"}


# Too much


@pytest.mark.trust("T-SRV-05")
@pytest.mark.parametrize(
    ("attack", "status"),
    [
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET /?q=" + b"a" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 17_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 10_000 + b"\r\n", 431),
    ],
    ids=["path", "long path", "query", "header", "101 headers", "10,000 headers"],
)
def test_large_heads_are_refused(
    shared_server: Any, connect: Any, attack: bytes, status: int
) -> None:
    shared_server.app.seen.clear()
    wire = connect(shared_server).send(attack)
    assert wire.read().status == status
    assert wire.is_closed()
    assert shared_server.app.seen == []


def flood(wire: Any, head: bytes, piece: bytes, num_bytes: int) -> int:
    """Send pieces until the other side has enough; return how much it took."""
    num_sent = 0
    try:
        wire.send(head)
        while num_sent < num_bytes:
            wire.send(piece)
            num_sent += len(piece)
    except OSError:
        pass
    return num_sent


@pytest.mark.trust("T-SRV-01", "T-SRV-05")
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET /", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: ", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\n" + HOST, b"X: 1\r\n" * 10_000),
        (chunked(), b"10000\r\n" + b" " * 65_536 + b"\r\n"),
        (chunked(), b"1\r\n \r\n" * 10_000),
        (chunked(b"{}") + b"0\r\n", b"X: 1\r\n" * 10_000),
        (chunked(b"{}") + b"1;", b"a" * 65_536),
        (post().replace(b"Content-Length: 2", b"Content-Length: 8000000"), b" " * 65_536),
        (b"POST /nothing" + chunked()[13:], b"10000\r\n" + b" " * 65_536 + b"\r\n"),
        (b"GET /v1/hang" + chunked(b"{}")[13:] + b"0\r\n\r\n", HEALTH * 1_000),
    ],
    ids=[
        "target",
        "header",
        "headers",
        "chunks",
        "small chunks",
        "trailers",
        "chunk extension",
        "length",
        "unread",
        "pipelined",
    ],
)
def test_endless_requests_end_and_leave_no_memory(
    fast_server: Any, connect: Any, head: bytes, piece: bytes
) -> None:
    """The server is in this process, so what is sent here counts too: a piece at a time."""
    memory = psutil.Process()
    before = memory.memory_info().rss
    wire = connect(fast_server)
    wire.socket.settimeout(1)
    num_sent = flood(wire, head, piece, 200_000_000)
    assert num_sent < 200_000_000
    assert memory.memory_info().rss - before < MAX_GROWTH_BYTES
    answers_soon(connect, fast_server)


def test_large_bodies_leave_others_their_turn(
    shared_server: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of a megabyte of tiny chunks takes the parser half a second at once."""
    sizes: list[int] = []
    receive = GuardedConnection.data_received

    def measure(self: GuardedConnection, data: bytes) -> None:
        sizes.append(len(data))
        receive(self, data)

    monkeypatch.setattr(GuardedConnection, "data_received", measure)
    body = b'{"a": "' + b"x" * 1_000_000 + b'"}'
    assert connect(shared_server).send(post(body=body)).read().body == body
    assert max(sizes) <= 16_384


@pytest.mark.trust("T-SRV-01")
def test_a_body_that_is_too_large_is_told_so(start_server: Any, connect: Any) -> None:
    """Closing at once would make the client's system throw the answer away."""
    server = start_server(limits=ServerLimits(linger_s=20))
    body = bytes(server.limits.max_body_bytes + 1)
    reply = connect(server).send(post(body=body)).read()
    assert (reply.status, reply.code) == (413, "body_too_large")
    pieces = [b'"' + b"a" * 1_000_000 + b'",'] * 9
    reply = connect(server).send(chunked(b"[", *pieces)).read()
    assert (reply.status, reply.code) == (413, "body_too_large")


def test_the_largest_body_that_is_taken(shared_server: Any, connect: Any) -> None:
    limit = shared_server.limits.max_body_bytes
    body = b'{"a": "' + b"x" * (limit - 9) + b'"}'
    assert len(body) == limit
    assert connect(shared_server).send(post(body=body)).read().body == body


@pytest.mark.trust("T-SRV-01")
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"a": ' + b"[" * 50_000, "json_too_deep"),
        (b'{"a":' * 50_000, "json_too_deep"),
        (b"[" + b"0," * 1_000_000 + b"0]", "json_too_large"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": 1, "a": 2}', "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"", "invalid_json"),
    ],
    ids=["lists", "objects", "values", "NaN", "twice", "bytes", "empty"],
)
def test_bombs_of_json_are_refused(
    shared_server: Any, connect: Any, body: bytes, code: str
) -> None:
    wire = connect(shared_server)
    reply = wire.send(post(body=body)).read()
    assert (reply.status, reply.code) == (400, code)
    assert wire.send(HEALTH).read().status == 200  # the connection is still good


# Too slow


@pytest.mark.trust("T-SRV-06")
def test_slow_connections_keep_nobody_waiting(shared_server: Any, connect: Any) -> None:
    """200 that send half a request, and a real one beside them."""
    for index in range(200):
        wire = connect(shared_server)
        if index % 2:
            wire.send(b"GET /health HTTP/1.1\r\nHost: local")
    for _ in range(3):
        answers_soon(connect, shared_server)


@pytest.mark.trust("T-SRV-06")
def test_more_slow_connections_than_there_is_room_for(start_server: Any, connect: Any) -> None:
    """Those that wait longest make room, so a real request always gets in."""
    server = start_server(limits=ServerLimits(max_connections=24))
    slow = [connect(server).send(b"GET /hea") for _ in range(100)]
    answers_soon(connect, server)
    assert server.num_connections <= 24
    assert slow[0].is_closed()
    assert not slow[-1].is_closed(0.1)


def test_no_room_among_real_requests(start_server: Any, connect: Any, wait_for: Any) -> None:
    server = start_server(limits=ServerLimits(max_connections=3, stop_s=0.5))
    hanging = [connect(server).send(post(b"/v1/hang")) for _ in range(3)]
    wait_for(lambda: server.app.seen.count("hanging") == 3)
    reply = connect(server).send(HEALTH).read()
    assert (reply.status, reply.code) == (503, "too_many_connections")
    assert reply.headers["retry-after"] == "1"
    hanging[0].close()
    wait_for(lambda: server.app.ended == ["client left"])
    answers_soon(connect, server)
    assert not hanging[1].is_closed(0.1)


def drip(wire: Any, piece: bytes, until: Callable[[], bool]) -> None:
    """Send a piece now and then."""
    try:
        while not until():
            wire.send(piece)
            time.sleep(0.02)
    except OSError:
        return


@pytest.mark.trust("T-SRV-06")
@pytest.mark.parametrize(
    ("first", "piece", "status"),
    [
        (b"", b"", None),
        (b"G", b"", 408),
        (b"GET / HTTP/1.1\r\n", b"X: 1\r\n", 408),
        (HEALTH + b"GET / HTTP/1.1\r\n", b"X: 1\r\n", 408),
        (HEALTH, b"", None),
        (post()[:-1], b"", 408),
        (post(body=b"{" + b" " * 5_000)[:-4_990], b" ", 408),
        (chunked(b"{"), b"1\r\n \r\n", 408),
    ],
    ids=["silent", "letter", "headers", "second", "idle", "body", "dripping", "chunks"],
)
def test_slow_clients_are_given_up(
    fast_server: Any, connect: Any, first: bytes, piece: bytes, status: int | None
) -> None:
    start = time.monotonic()
    wire = connect(fast_server).send(first)
    if first.startswith(HEALTH):
        assert wire.read().status == 200
    done = threading.Event()
    dripping = threading.Thread(target=drip, args=(wire, piece, done.is_set))
    dripping.start()
    try:
        if status is not None:
            assert wire.read().status == status
        assert wire.is_closed(3)
        assert 0.2 < time.monotonic() - start < 4
    finally:
        done.set()
        dripping.join()


def test_a_connection_in_use_is_not_given_up(start_server: Any, connect: Any) -> None:
    server = start_server(limits=replace(FAST, head_s=0.8, idle_s=0.8))
    wire = connect(server)
    for _ in range(4):
        assert wire.send(HEALTH).read().status == 200
        time.sleep(0.3)


def test_a_long_answer_is_not_given_up(fast_server: Any, connect: Any, wait_for: Any) -> None:
    wire = connect(fast_server).send(post(b"/v1/hang"))
    assert not wire.is_closed(1.0)
    wire.close()
    wait_for(lambda: fast_server.app.ended == ["client left"])


# Clients that read nothing, and clients that leave


@pytest.mark.trust("T-GEN-02")
def test_a_client_that_reads_nothing_is_dropped(
    fast_server: Any, connect: Any, wait_for: Any
) -> None:
    memory = psutil.Process()
    before = memory.memory_info().rss
    wire = connect(fast_server, receive_buffer=4_096)
    wire.send(b"GET /v1/stream HTTP/1.1\r\n" + HOST + b"\r\n")
    for _ in range(5):
        answers_soon(connect, fast_server)  # the others notice nothing
    wait_for(lambda: fast_server.app.ended == ["client left"])
    assert memory.memory_info().rss - before < MAX_GROWTH_BYTES
    assert wire.is_closed(10)  # behind what the system still holds for it


@pytest.mark.trust("T-GEN-02")
def test_a_client_that_reads_slowly_is_not_dropped(start_server: Any, connect: Any) -> None:
    server = start_server(limits=replace(FAST, stall_s=0.7))
    wire = connect(server, receive_buffer=4_096)
    wire.send(b"GET /v1/stream HTTP/1.1\r\n" + HOST + b"\r\n")
    deadline = time.monotonic() + 1.7
    while time.monotonic() < deadline:
        assert wire.socket.recv(65_536)
        time.sleep(0.01)
    assert server.app.ended == []


def test_a_large_answer_that_is_fetched_slowly_is_not_dropped(
    start_server: Any, connect: Any
) -> None:
    """Nothing fits in for longer than the limit, but something is taken all the time."""
    server = start_server(limits=replace(FAST, stall_s=0.5))
    wire = connect(server, receive_buffer=4_096)
    wire.send(b"GET /v1/large HTTP/1.1\r\n" + HOST + b"\r\n")
    deadline = time.monotonic() + 1.7
    while time.monotonic() < deadline:
        assert wire.socket.recv(65_536)
        time.sleep(0.01)
    assert server.num_connections == 1


@pytest.mark.trust("T-GEN-02")
@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
def test_an_answer_that_is_not_fetched_is_dropped_too(
    start_server: Any, connect: Any, wait_for: Any, header: bytes
) -> None:
    """The handler has long ended; only the connection knows."""
    server = start_server(limits=FAST)
    wire = connect(server, receive_buffer=4_096)
    wire.send(b"GET /v1/large HTTP/1.1\r\n" + HOST + header + b"\r\n")
    wait_for(lambda: server.num_connections == 1)
    wait_for(lambda: server.num_connections == 0)


@pytest.mark.trust("T-GEN-01")
@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("rest", [b"", b"\r\n", HEALTH * 3], ids=["", "line end", "requests"])
def test_handlers_learn_that_the_client_left(
    fast_server: Any, connect: Any, wait_for: Any, is_reset: bool, rest: bytes
) -> None:
    """Also when it has sent more behind its request, which stops uvicorn from reading."""
    wire = connect(fast_server).send(post(b"/v1/hang") + rest)
    wait_for(lambda: "hanging" in fast_server.app.seen)
    wire.send(rest)
    time.sleep(0.05)
    if is_reset:
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    wire.close()
    wait_for(lambda: fast_server.app.ended == ["client left"])
    assert "GET /health" not in fast_server.app.seen


def test_a_client_that_leaves_in_the_midst_of_its_body(
    start_server: Any, connect: Any, wait_for: Any
) -> None:
    server = start_server()
    connect(server).send(post()[:-1]).close()
    wait_for(lambda: server.app.seen == ["POST /v1/echo"])
    wait_for(lambda: server.num_connections == 0)


# Errors and keys


def test_bugs_tell_nothing_and_break_off_what_has_begun(
    shared_server: Any, connect: Any, tiny_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    reply = connect(shared_server).send(b"GET /v1/bug HTTP/1.1\r\n" + HOST + b"\r\n").read()
    assert reply.status == 500
    assert tiny_app.SECRET.encode() not in reply.body
    assert len([r for r in caplog.records if r.exc_info]) == 1
    wire = connect(shared_server).send(b"GET /v1/bug_midway HTTP/1.1\r\n" + HOST + b"\r\n")
    received = b""
    try:
        while part := wire.socket.recv(65_536):
            received += part
    except ConnectionError:
        pass
    assert not received.endswith(b"0\r\n\r\n")  # no end that would make it look whole
    assert tiny_app.SECRET.encode() not in received
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 2


@pytest.mark.trust("T-SEC-05")
def test_the_key_is_asked_for_and_shows_nowhere(
    start_server: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    key = b"correct-horse-battery"
    server = start_server(key=key.decode())
    for given, status in (
        (b"", 401),
        (b"Authorization: Bearer wrong-horse-battery\r\n", 401),
        (b"Authorization: Bearer " + key + b"\r\n", 200),
    ):
        reply = connect(server).send(post(headers=given)).read()
        assert reply.status == status
        assert key not in reply.body + str(reply.headers).encode()
    assert connect(server).send(HEALTH).read().status == 200
    assert key.decode() not in caplog.text
    assert server.app.seen == ["POST /v1/echo", "GET /health"]


def test_errors_of_handlers_come_as_openai_has_them(shared_server: Any, connect: Any) -> None:
    reply = connect(shared_server).send(b"GET /v1/full HTTP/1.1\r\n" + HOST + b"\r\n").read()
    assert (reply.status, reply.headers["retry-after"]) == (503, "3")
    assert json.loads(reply.body)["error"] == {
        "message": "Full.",
        "type": "unavailable_error",
        "param": None,
        "code": "queue_full",
        "fix": "ask later",
    }


def test_no_attack_was_a_bug(
    fast_server: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Random damage to a request: refused or answered, and nothing is logged as an error."""
    import random

    randomly = random.Random(7)
    request = post(headers=b"Origin: http://localhost\r\nAuthorization: Bearer x\r\n")
    for _ in range(60):
        damaged = bytearray(request)
        for _ in range(randomly.randint(1, 4)):
            damaged[randomly.randrange(len(damaged))] = randomly.randrange(256)
        wire = connect(fast_server)
        wire.send(bytes(damaged))
        wire.socket.shutdown(socket.SHUT_WR)
        wire.is_closed(2)
        wire.close()
    answers_soon(connect, fast_server)
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]
