"""What a request can reach: no file by a model's name, nothing to write; and what stays unsaid."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from starlette.routing import Route

from qwen_edge.server.api.openapi import make_openapi

Start = Callable[..., Any]
SECRET = "nobody-may-read-this-42"
NAMES = [
    "../scripted", "../../etc/passwd", "..\\..\\secret", "/etc/passwd", "C:\\secret",
    "//host/share", "sha256:../../../etc/passwd", "scripted/../../x", "./scripted", "scripted/",
    "file:///etc/passwd", "%2e%2e%2fetc%2fpasswd", "http://192.0.2.1/x", "~/x", "$HOME", "x\x00y",
    "\x00", "CON", "NUL", "a" * 5_000, "", " ", ".", "..", "scripted\n", "\u202escripted",
    "hf:Qwen/Qwen3-0.6B",
]  # fmt: skip
_opened: list[tuple[str, Any]] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is done with files; modules that Python finds late are none of the server's."""
    if _opened is None or event not in ("open", "os.mkdir", "os.remove", "os.rename"):
        return
    if not str(arguments[0]).startswith((sys.prefix, sys.base_prefix)):
        _opened.append((event, arguments))


@pytest.fixture(scope="module")
def watch_files() -> Callable[[], Any]:
    """Return a context that gathers what this process opens, lists and changes meanwhile."""
    sys.addaudithook(_listen)  # stays for good, and does nothing outside the context

    @contextmanager
    def watch() -> Iterator[list[tuple[str, Any]]]:
        global _opened
        _opened = found = []
        try:
            yield found
        finally:
            _opened = None

    return watch


@pytest.mark.trust("T-SEC-01")
def test_a_models_name_is_no_path(start_scripted: Start, watch_files: Any, cases: Any) -> None:
    server = start_scripted()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        with watch_files() as opened:
            for name in NAMES:
                reply = client.post("/v1/chat/completions", json={**body, "model": name})
                assert reply.status_code in (400, 404), name
                quoted = "".join(f"%{byte:02x}" for byte in name.encode())
                for path in (f"/v1/models/{quoted}", f"/v1/responses/{quoted}"):
                    assert client.get(path).status_code in (307, 400, 404, 414), path
                cases(1)
    assert server.loads == ["scripted"]
    assert opened == []


@pytest.mark.trust("T-SEC-09")
def test_nothing_can_be_loaded_from_elsewhere_written_or_deleted(
    start_scripted: Start, watch_files: Any
) -> None:
    """The one DELETE forgets a stored response, in memory."""
    server = start_scripted()
    routes = [route for route in server.server.make_app().routes if isinstance(route, Route)]
    reading = {"GET", "HEAD"}
    changing = {route.path: route.methods for route in routes if not route.methods <= reading}
    assert changing == {
        "/v1/responses/{id}": {"DELETE"},
        "/v1/chat/completions": {"POST"},
        "/v1/completions": {"POST"},
        "/v1/responses": {"POST"},
    }
    paths = list(make_openapi()["paths"])
    with httpx.Client(base_url=server.url, timeout=30) as client, watch_files() as opened:
        made = client.post("/v1/responses", json={"input": "Hi"}).json()
        assert client.delete(f"/v1/responses/{made['id']}").status_code == 200
        for path in paths:
            for method in ("PUT", "PATCH", "DELETE", "POST"):
                reply = client.request(method, path.format(name="x", id="x"), json={})
                assert reply.status_code in (400, 404, 405), (method, path)
    assert opened == []


@pytest.mark.trust("T-SEC-08")
def test_what_is_said_is_in_no_log(
    start_scripted: Start, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("httpx", "httpcore"):  # the client's own
        caplog.set_level(logging.WARNING, logger=name)
    for name in ("", "qwen_edge", "uvicorn", "starlette", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    server = start_scripted([f"The answer is {SECRET}."])
    said = [{"role": "user", "content": SECRET}]
    named = {"name": SECRET, "schema": {"type": "object", "pattern": "[" + SECRET}}
    bodies: list[tuple[str, Any]] = [
        ("chat/completions", {"messages": said}),
        ("chat/completions", {"messages": said, "stream": True}),
        ("chat/completions", {"messages": said, "temperature": SECRET}),
        ("chat/completions", {"messages": [{"role": SECRET}]}),
        ("chat/completions", {"messages": said, SECRET: 1}),
        ("chat/completions", {"messages": said * 200}),
        ("chat/completions", {"messages": said, "model": SECRET}),
        ("chat/completions", {"messages": said, "tools": [{"function": {"name": SECRET + "!"}}]}),
        (
            "chat/completions",
            {"messages": said, "response_format": {"type": "json_schema", "json_schema": named}},
        ),
        ("completions", {"prompt": SECRET, "stop": SECRET}),
        ("responses", {"input": SECRET, "instructions": SECRET}),
    ]
    for path, body in bodies:
        httpx.post(f"{server.url}/v1/{path}?key={SECRET}", json=body, timeout=30)
    server.stop()
    assert len(caplog.records) > len(bodies), "nothing was logged at all"
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.trust("T-SEC-07")
def test_a_request_writes_no_lines_of_its_own_into_the_log(
    start_scripted: Start, caplog: pytest.LogCaptureFixture, wait_for: Any
) -> None:
    caplog.set_level(logging.INFO, "qwen_edge.server.requests")
    server = start_scripted()
    evil = "x%0aINFO:%20all%20is%20well%1b[2J%e2%80%ae%c2%85"
    for path in (f"/v1/models/{evil}", f"/v1/responses/{evil}", f"/{evil}"):
        assert httpx.get(server.url + path).status_code in (400, 404)
    wait_for(lambda: len(caplog.records) == 3)  # a line is written when its answer was sent
    messages = [record.getMessage() for record in caplog.records]
    assert all(text.isprintable() for text in messages), messages


@pytest.mark.trust("T-SRV-13")
def test_the_official_client_has_a_class_for_each_refusal(
    start_scripted: Start, wait_for: Any
) -> None:
    server = start_scripted(["Yes."], parallel=1, queue=0)
    wait_for(lambda: bool(server.models), within_s=10)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    said: Any = [{"role": "user", "content": "Hi"}]

    def ask(**options: Any) -> Any:
        return client.chat.completions.create(model="scripted", messages=said, **options)

    assert ask().choices[0].message.content == "Yes."
    with pytest.raises(openai.BadRequestError):
        ask(temperature=-1)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    with pytest.raises(openai.PermissionDeniedError):
        ask(extra_headers={"Origin": "http://evil.example"})
    server.gate.clear()
    waiting = threading.Thread(target=ask)
    waiting.start()
    wait_for(lambda: server.num_wanted == 1)
    with pytest.raises(openai.InternalServerError) as full:
        ask()
    server.gate.set()
    waiting.join()
    assert (full.value.status_code, full.value.code) == (503, "queue_full")
    server.stop()
    with pytest.raises(openai.APIConnectionError):
        ask()
