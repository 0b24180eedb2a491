"""The guard: who may ask what, and what every answer has. No sockets here."""

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Any

import pytest

from qwen_edge.errors import QueueFullError, UsageError
from qwen_edge.server.access import AccessKey
from qwen_edge.server.http_guard import CONNECTION_EXTENSION, HttpGuard, guard_settings
from qwen_edge.server.refusals import ClientLeftError, HttpRefusal
from qwen_edge.server.request_head import GuardSettings

HOST = "127.0.0.1:8080"
OWN = f"http://{HOST}"
ALLOWED = "http://localhost:3000"
KEY = "correct-horse-battery"
JSON = {"content-type": "application/json", "content-length": "2"}
SETTINGS = guard_settings(["127.0.0.1"])


@dataclass
class Answer:
    """What came out of the guard, and whether the request went through it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_through: bool

    @property
    def names(self) -> dict[str, str]:
        return dict(self.headers)

    @property
    def code(self) -> str:
        code: str = json.loads(self.body)["error"]["code"]
        return code


def ask(
    method: str = "GET",
    path: str = "/v1/models",
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    settings: GuardSettings = SETTINGS,
    **options: Any,
) -> Answer:
    """Send one request through the guard to an application that answers with 200.

    Args:
        method: Of the request.
        path: Decoded.
        headers: Beside a right Host header, which is left out when they hold one.
        settings: Of the guard.
        **options: `fails` (raised by the application), `midway` (after it began), `version`,
            `query`, `connection`, `answered` (headers the application sends).
    """
    pairs = list(headers.items() if isinstance(headers, dict) else headers or [])
    if not any(name == "host" for name, _ in pairs) and not options.get("hostless"):
        pairs.append(("host", HOST))
    seen: list[bool] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(True)
        if "fails" in options and not options.get("midway"):
            raise options["fails"]
        given = options.get("answered", [(b"content-type", b"application/json")])
        await send({"type": "http.response.start", "status": 200, "headers": given})
        if "fails" in options:
            raise options["fails"]
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> dict[str, Any]:
        pytest.fail("the guard read the body")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": options.get("query", b""),
        "http_version": options.get("version", "1.1"),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
        "extensions": {CONNECTION_EXTENSION: {"connection": options.get("connection")}},
    }
    asyncio.run(HttpGuard(app, settings)(scope, receive, send))
    if not sent:
        return Answer(0, [], b"", bool(seen))
    names = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], names, body, bool(seen))


def refused(status: int, code: str, *args: Any, **options: Any) -> Answer:
    """Ask, and check that it was refused before the application saw it."""
    answer = ask(*args, **options)
    assert (answer.status, answer.code, answer.is_through) == (status, code, False)
    assert answer.names["connection"] == "close"
    return answer


def test_what_is_allowed_goes_through() -> None:
    answer = ask()
    assert (answer.status, answer.body, answer.is_through) == (200, b"{}", True)
    assert ask("POST", "/v1/chat/completions", JSON).is_through
    assert ask("HEAD", "/").is_through
    assert ask("DELETE", "/v1/responses/1").is_through


# Host


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8080",
        "127.0.0.1",
        "localhost:8080",
        "LocalHost",
        "[::1]:8080",
        "localhost:9000",  # a forwarded port
    ],
)
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert ask(headers={"host": host}).is_through


@pytest.mark.trust("T-SEC-02")
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "evil.localhost.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "127.0.0.1.nip.io:8080",
        "app.localhost",
        "localhost.",
        "0.0.0.0:8080",
        "127.0.0.2",
        "127.1",
        "2130706433",
        "0x7f000001",
        "192.168.1.5:8080",
        "[::ffff:127.0.0.1]",
        "::1",
        "[::1",
        "",
        " ",
        "localhost:",
        "localhost:80:80",
        "localhost:99999",
        "localhost:8080@evil.example",
        "evil.example@localhost",
        "localhost/evil",
        "localhost#",
        "localhost\x00",
        "localhost, evil.example",
        "lоcalhost".encode().decode("latin-1"),  # a Cyrillic о
    ],
)
def test_other_names_are_refused_before_routing(host: str) -> None:
    """A page whose name was rebound to 127.0.0.1 still says its own name here."""
    refused(403, "host_not_allowed", headers={"host": host})
    refused(403, "host_not_allowed", "POST", "/v1/models", {"host": host, **JSON})
    refused(403, "host_not_allowed", path="/", headers={"host": host})


@pytest.mark.trust("T-SEC-02")
def test_two_host_headers_and_none() -> None:
    refused(400, "duplicate_header", headers=[("host", HOST), ("host", HOST)])
    refused(400, "duplicate_header", headers=[("host", HOST), ("host", "evil.example")])
    refused(400, "host_missing", hostless=True)
    assert ask(hostless=True, version="1.0").is_through  # no browser speaks it
    refused(403, "host_not_allowed", headers={"host": "evil.example"}, version="1.0")


def test_hosts_that_were_allowed() -> None:
    settings = guard_settings(["192.168.1.5"], allow_hosts=["My-Laptop.local"])
    assert ask(headers={"host": "192.168.1.5:8080"}, settings=settings).is_through
    assert ask(headers={"host": "my-laptop.local:8080"}, settings=settings).is_through
    refused(403, "host_not_allowed", headers={"host": "192.168.1.6"}, settings=settings)


def test_listening_everywhere_takes_addresses_but_no_names() -> None:
    settings = guard_settings([], takes_any_address=True)
    for host in ("192.168.1.5:8080", "[fe80::1]:8080", "localhost"):
        assert ask(headers={"host": host}, settings=settings).is_through
    for host in ("evil.example", "127.0.0.1.nip.io", "fe80::1", "[192.168.1.5]", "192.168.1"):
        refused(403, "host_not_allowed", headers={"host": host}, settings=settings)


@pytest.mark.parametrize("name", ["*", "", "http://a", "a:80", "a/b", "*.local", "a b", "-a"])
def test_hosts_that_cannot_be_allowed(name: str) -> None:
    with pytest.raises(UsageError, match="--allow-host"):
        guard_settings([], allow_hosts=[name])


# Origin


@pytest.mark.trust("T-SEC-03")
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://127.0.0.1:8080",
        "http://127.0.0.1:8081",
        "http://127.0.0.1",
        "http://localhost:8080",  # not the name it was asked by
        "http://127.0.0.1:8080.evil.example",
        "http://127.0.0.1:8080/",
        "null",
        "",
        "file://",
        "chrome-extension://abc",
        ALLOWED,
    ],
)
def test_pages_of_others_are_refused(method: str, origin: str) -> None:
    answer = refused(403, "origin_not_allowed", method, headers={"origin": origin, **JSON})
    assert not [name for name in answer.names if name.startswith("access-control")]


def test_two_origins_are_refused() -> None:
    refused(400, "duplicate_header", headers=[("origin", OWN), ("origin", OWN)])


def test_its_own_page_may_ask() -> None:
    answer = ask("POST", headers={"origin": OWN, "sec-fetch-site": "same-origin", **JSON})
    assert answer.is_through
    assert not [name for name in answer.names if name.startswith("access-control")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/chat.js", "/docs"])
def test_pages_of_others_cannot_embed(site: str, path: str) -> None:
    """A script or image element sends no Origin, but browsers tell where it stands."""
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}
    refused(403, "origin_not_allowed", path=path, headers=headers)
    visit = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    refused(403, "origin_not_allowed", path=path, headers=visit)


def test_links_to_the_page_may_be_followed_but_not_framed() -> None:
    visit = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert ask(path="/", headers=visit).is_through
    refused(403, "origin_not_allowed", path="/", headers=visit | {"sec-fetch-dest": "iframe"})
    refused(403, "origin_not_allowed", "POST", "/", headers=visit | JSON)


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_a_persons_own_steps_are_answered(site: str) -> None:
    assert ask(path="/docs", headers={"sec-fetch-site": site}).is_through


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_sockets_of_foreign_pages_are_refused_as_such(origin: str) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "origin": origin}
    refused(403, "origin_not_allowed", headers=upgrade)
    refused(400, "no_websocket", headers=upgrade | {"origin": OWN})


def test_websocket_scopes_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pytest.fail("a WebSocket went through")

    asyncio.run(HttpGuard(app, SETTINGS)({"type": "websocket"}, app, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# CORS

CORS = guard_settings(["127.0.0.1"], allow_origins=[ALLOWED], key=AccessKey(KEY))
BEARER = {"authorization": f"Bearer {KEY}"}
PREFLIGHT = {
    "origin": ALLOWED,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def test_allowed_origins_may_read_answers_also_refusals() -> None:
    headers = {"origin": ALLOWED, "sec-fetch-site": "cross-site", **JSON}
    for answer in (
        ask("POST", headers=headers | BEARER, settings=CORS),
        ask("POST", headers=headers, settings=CORS),
        ask("POST", headers=headers | BEARER | {"content-type": "text/plain"}, settings=CORS),
    ):
        assert answer.names["access-control-allow-origin"] == ALLOWED
        assert answer.names["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.names
        assert "*" not in answer.names.values()


@pytest.mark.parametrize("origin", ["http://LOCALHOST:3000", ALLOWED + "0", ALLOWED + "/", "null"])
def test_origins_are_compared_exactly(origin: str) -> None:
    answer = refused(403, "origin_not_allowed", headers={"origin": origin, **BEARER}, settings=CORS)
    assert "access-control-allow-origin" not in answer.names
    assert answer.names["vary"] == "Origin"


def test_answers_vary_where_cors_is_on_and_only_there() -> None:
    assert ask(headers=BEARER, settings=CORS).names["vary"] == "Origin"
    assert "vary" not in ask().names


def test_preflights_of_allowed_origins_need_no_key() -> None:
    answer = ask("OPTIONS", "/v1/chat/completions", PREFLIGHT, CORS)
    assert (answer.status, answer.is_through) == (204, False)
    assert answer.names["access-control-allow-origin"] == ALLOWED
    assert answer.names["access-control-allow-methods"] == "GET, POST, DELETE"
    assert (
        answer.names["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    )
    assert "access-control-allow-credentials" not in answer.names


@pytest.mark.trust("T-SEC-03")
def test_preflights_of_others_are_refused() -> None:
    for settings in (CORS, SETTINGS):
        answer = refused(
            403,
            "origin_not_allowed",
            "OPTIONS",
            headers=PREFLIGHT | {"origin": "http://evil.example"},
            settings=settings,
        )
        assert not [name for name in answer.names if name.startswith("access-control")]
    refused(405, "method_not_allowed", "OPTIONS")
    refused(405, "method_not_allowed", "OPTIONS", headers={"origin": OWN})


def test_preflights_get_no_headers_that_are_none() -> None:
    asked = PREFLIGHT | {"access-control-request-headers": "a b: c"}
    assert "access-control-allow-headers" not in ask("OPTIONS", "/", asked, CORS).names
    private = PREFLIGHT | {"access-control-request-private-network": "true"}
    names = ask("OPTIONS", "/", private, CORS).names
    assert names["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "", "localhost:3000", ALLOWED + "/", "http://*", "HTTP://a", "http://a:"],
)
def test_origins_that_cannot_be_allowed(origin: str) -> None:
    with pytest.raises(UsageError, match="--allow-origin"):
        guard_settings([], allow_origins=[origin])


@pytest.mark.parametrize("origin", ["tauri://localhost", "http://[::1]:3000", "https://a.b"])
def test_origins_of_apps_can_be_allowed(origin: str) -> None:
    settings = guard_settings([], allow_origins=[origin])
    assert ask(headers={"origin": origin}, settings=settings).is_through


# Keys

LOCKED = guard_settings(["127.0.0.1"], key=AccessKey(KEY), open_paths=["/chat.js"])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/chat/completions",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/nothing",
        "/health/",
        "/chat.js/",
        "/HEALTH",
        "/v1/../health",
    ],
)
def test_everything_but_the_page_and_health_needs_the_key(path: str) -> None:
    if ".." not in path:
        answer = refused(401, "invalid_api_key", path=path, settings=LOCKED)
        assert answer.names["www-authenticate"].startswith("Bearer")
        refused(401, "invalid_api_key", "POST", path, JSON, settings=LOCKED)
        assert ask(path=path, headers=BEARER, settings=LOCKED).is_through
    assert not ask(path=path, settings=LOCKED).is_through


def test_the_page_and_health_need_none() -> None:
    for path in ("/", "/health", "/chat.js"):
        assert ask(path=path, settings=LOCKED).is_through
        refused(401, "invalid_api_key", "POST", path, JSON, settings=LOCKED)


@pytest.mark.trust("T-SEC-05")
@pytest.mark.parametrize("given", ["", "Bearer", "Bearer x", f"Basic {KEY}", f"Bearer {KEY}x", KEY])
def test_wrong_keys_are_refused(given: str) -> None:
    answer = refused(401, "invalid_api_key", headers={"authorization": given}, settings=LOCKED)
    assert KEY.encode() not in answer.body


def test_two_keys_are_none() -> None:
    twice = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    refused(401, "invalid_api_key", headers=twice, settings=LOCKED)


def test_without_a_key_any_is_ignored() -> None:
    assert ask(headers={"authorization": "Bearer sk-none"}).is_through
    assert ask(headers={"authorization": "nonsense"}).is_through


# Bodies


@pytest.mark.trust("T-SEC-04")
@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json, text/plain",
        "application/jsonp",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "",
    ],
)
def test_bodies_that_pages_may_send_unasked_are_refused(kind: str) -> None:
    refused(415, "unsupported_content_type", "POST", headers={"content-type": kind})


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON", "application/json; charset=UTF-8"]
)
def test_json_is_taken(kind: str) -> None:
    assert ask("POST", headers={"content-type": kind}).is_through


def test_no_type_and_two_types_are_refused() -> None:
    refused(415, "unsupported_content_type", "POST")
    twice = [("content-type", "application/json"), ("content-type", "text/plain")]
    refused(400, "duplicate_header", "POST", headers=twice)


def test_compressed_bodies_are_refused() -> None:
    refused(
        415, "unsupported_content_encoding", "POST", headers=JSON | {"content-encoding": "gzip"}
    )
    assert ask("POST", headers=JSON | {"content-encoding": "identity"}).is_through


def test_lengths_beyond_the_limit_are_refused_unread() -> None:
    most = SETTINGS.limits.max_body_bytes
    assert ask("POST", headers=JSON | {"content-length": str(most)}).is_through
    for method in ("POST", "GET", "DELETE"):
        headers = JSON | {"content-length": str(most + 1)}
        refused(413, "body_too_large", method, headers=headers)


def test_two_ends_of_a_body_are_refused() -> None:
    chunked = {"transfer-encoding": "chunked"}
    refused(400, "ambiguous_length", "POST", headers=JSON | chunked)
    refused(400, "ambiguous_length", headers={"content-length": "0", **chunked})
    headers = {"content-type": "application/json", **chunked}
    refused(400, "ambiguous_length", "POST", headers=headers, version="1.0")
    assert ask("POST", headers=headers).is_through


# Methods, paths, sizes


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "CONNECT", "get", "BREW", "X" * 9_000])
def test_unknown_methods_are_refused(method: str) -> None:
    answer = ask(method)
    assert (answer.status, answer.is_through) in {(405, False), (431, False)}
    if answer.status == 405:
        assert "POST" in answer.names["allow"]


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "//v1/models",
        "/v1//models",
        "/..",
        "/../etc/passwd",
        "/v1/../../etc/passwd",
        "/v1/models/..",
        "/./v1/models",
        "/v1/%2e%2e/secret",  # was %252e%252e
        "/v1/models/%00",
    ],
)
def test_paths_of_two_meanings_are_not_there(path: str) -> None:
    refused(404, "not_found", path=path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "*",
        "v1/models",
        "http://evil.example/",
        "/v1\\models",
        "/..\\secret",
        "/a\0b",
        "/a\nb",
        "/\x1b[31m",
        "/\ufffd",
        "/\u202e",
        "/C:\\",
    ],
)
def test_paths_that_nobody_means_are_refused(path: str) -> None:
    refused(400, "bad_path", path=path)


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models/Qwen/Qwen3-4B", "/v1/models/模型 7"])
def test_names_in_paths_go_through(path: str) -> None:
    assert ask(path=path).is_through


def test_sizes_of_heads() -> None:
    limits = SETTINGS.limits
    most = limits.max_target_bytes
    assert ask(path="/" + "a" * (most - 1)).is_through
    refused(414, "target_too_long", path="/" + "a" * most)
    refused(414, "target_too_long", query=b"a" * most)
    many = [(f"x-{i}", "1") for i in range(limits.max_headers)]
    assert ask(headers=many[:-1]).is_through
    refused(431, "headers_too_large", headers=many)
    refused(431, "headers_too_large", headers={"x": "a" * limits.max_head_bytes})


def test_other_versions_are_refused() -> None:
    for version in ("0.9", "1.2", "2.0", "2", "3"):
        refused(505, "http_version", version=version)


# Answers


def test_every_answer_has_the_headers_that_protect_it() -> None:
    for answer in (
        ask(),
        ask(headers={"host": "evil.example"}),
        ask(fails=ValueError("bug")),
        ask("OPTIONS", headers=PREFLIGHT, settings=CORS),
    ):
        assert answer.names["x-content-type-options"] == "nosniff"
        assert answer.names["referrer-policy"] == "no-referrer"
        assert answer.names["cross-origin-resource-policy"] == "same-origin"
        assert answer.names["cache-control"] == "no-store"
        assert "server" not in answer.names
        assert len(answer.names) == len(answer.headers)


def test_the_application_may_be_less_careful_with_caches_but_not_with_origins() -> None:
    given = [
        (b"Cache-Control", b"no-cache"),
        (b"Content-Security-Policy", b"default-src 'self'"),
        (b"Server", b"tiny"),
        (b"Access-Control-Allow-Origin", b"*"),
    ]
    names = ask(answered=given).names
    assert names["cache-control"] == "no-cache"
    assert names["content-security-policy"] == "default-src 'self'"
    assert "server" not in names
    assert "access-control-allow-origin" not in names


def test_errors_of_handlers_are_answered() -> None:
    answer = ask(fails=QueueFullError("Full.", "wait", retry_after_s=4))
    assert (answer.status, answer.code, answer.names["retry-after"]) == (503, "queue_full", "4")
    assert "connection" not in answer.names
    answer = ask(fails=HttpRefusal(404, "No such model.", code="model_not_found"))
    assert (answer.status, answer.code) == (404, "model_not_found")


def test_bugs_are_logged_once_and_tell_clients_nothing(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(fails=ValueError("a secret"))
    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is not None


class FakeConnection:
    """What the guard sees of a connection."""

    def __init__(self, *, is_gone: bool = False) -> None:
        self.is_gone = is_gone
        self.is_dropped = False

    def drop(self) -> None:
        self.is_dropped = True


def test_answers_that_cannot_be_finished_are_broken_off() -> None:
    """A tidy end would make half an answer look whole."""
    for error in (ValueError("bug"), QueueFullError("Full.", "wait")):
        connection = FakeConnection()
        answer = ask(fails=error, midway=True, connection=connection)
        assert (answer.status, answer.body) == (200, b"")
        assert connection.is_dropped


def test_an_error_after_the_answer_leaves_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Starlette answers a bug itself and then raises it for whoever logs."""
    connection = FakeConnection()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        raise ValueError("bug")

    async def nothing(*_: Any) -> Any:
        return None

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [(b"host", b"localhost")],
        "extensions": {CONNECTION_EXTENSION: {"connection": connection}},
    }
    asyncio.run(HttpGuard(app, SETTINGS)(scope, nothing, nothing))
    assert not connection.is_dropped
    assert len(caplog.records) == 1


def test_sending_to_nobody_raises_in_the_handler() -> None:
    raised: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        except ClientLeftError as error:
            raised.append(error)
            raise

    async def nothing(*_: Any) -> Any:
        return None

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [(b"host", b"localhost")],
        "extensions": {CONNECTION_EXTENSION: {"connection": FakeConnection(is_gone=True)}},
    }
    asyncio.run(HttpGuard(app, SETTINGS)(scope, nothing, nothing))
    assert len(raised) == 1


# The log


@pytest.mark.trust("T-SEC-08")
def test_the_log_has_a_line_and_neither_key_nor_query_nor_body(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    ask("POST", headers=JSON | BEARER, settings=LOCKED, query=b"token=a-secret")
    ask("POST", headers=JSON | {"authorization": "Bearer other-secret"}, settings=LOCKED)
    ask(path="/v1/\nINFO forged \x1b[2J", headers={"host": "secret.example"})
    lines = [record.getMessage() for record in caplog.records if "asyncio" not in record.name]
    assert [line.rpartition(" in ")[0] for line in lines] == [
        "POST /v1/models 200",
        "POST /v1/models 401",
        r"GET /v1/\nINFO forged \x1b[2J 403",
    ]
    assert not [line for line in lines if "secret" in line or KEY in line]
    assert lines[1].endswith("(invalid_api_key)")
