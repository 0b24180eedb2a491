"""A stand-in for the server, for the tests of the chat page: real HTTP, answers by script.

It serves the page as the server does and speaks the same API, but a test says beforehand, step by
step, what comes over the wire and when. To look at the page with it by hand:

    python tests/server/chat_page_server.py [PORT]
"""

import contextlib
import json
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "runtime" / "qwen_edge" / "server" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
GATE_TIMEOUT_S = 300
TIMINGS = {
    "prompt_ms": 840.0,
    "predicted_ms": 2000.0,
    "prompt_per_second": 50.0,
    "predicted_per_second": 12.34,
    "prompt_n": 42,
    "predicted_n": 25,
    "cache_n": 30,
}


def event(data: object) -> bytes:
    """Return a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def delta(finish_reason: str | None = None, /, **fields: object) -> bytes:
    """Return the event of one chunk of an answer."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish_reason}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def content(text: str) -> bytes:
    """Return the event of a piece of an answer's text."""
    return delta(content=text)


def reasoning(text: str) -> bytes:
    """Return the event of a piece of thinking, in both spellings."""
    return delta(reasoning_content=text, reasoning=text)


def end(finish_reason: str = "stop") -> list[bytes]:
    """Return the events at the end of every answer."""
    choice = {"index": 0, "delta": {}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 72, "completion_tokens": 25, "total_tokens": 97}
    last = {"choices": [], "usage": usage, "timings": TIMINGS}
    return [event({"choices": [choice]}), event(last), b"data: [DONE]\n\n"]


def error(message: str, fix: str) -> dict[str, Any]:
    """Return the body of a refusal."""
    return {"error": {"message": message, "type": "server_error", "code": None, "fix": fix}}


def model(name: str, thinking: str = "switchable") -> dict[str, Any]:
    """Return what is told of a model."""
    facts = {"state": "loaded", "context_tokens": 8192, "thinking": thinking, "device": "CPU"}
    return {"id": name, "object": "model", "created": 0, "owned_by": "x", "qwen_edge": facts}


@dataclass
class Refusal:
    """Instead of an answer: a status and a body."""

    status: int
    body: dict[str, Any]


@dataclass
class Asked:
    """A request for an answer, and what became of it."""

    body: dict[str, Any]
    is_closed: threading.Event = field(default_factory=threading.Event)  # by the page


# What comes over the wire: bytes, a gate to wait at until the test opens it, or a broken line.
Step = bytes | threading.Event | None
BREAK = None


class StandIn(ThreadingHTTPServer):
    """The server. Its attributes are what the tests set and look at."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.health: tuple[int, dict[str, Any]] = (200, {"status": "ok"})
        self.models = [model("demo")]
        self.key: str | None = None
        self.answers: deque[list[Step] | Refusal] = deque()
        self.asked: list[Asked] = []
        self.gates: list[threading.Event] = []
        self.connections: list[socket.socket] = []

    def gate(self) -> threading.Event:
        """Return a place in a script at which the answer waits until the test goes on."""
        self.gates.append(threading.Event())
        return self.gates[-1]

    def will_answer(self, *steps: Step | list[bytes]) -> None:
        """Plan the next answer."""
        flat: list[Step] = []
        for step in steps:
            flat.extend(step if isinstance(step, list) else [step])
        self.answers.append(flat)

    def will_refuse(self, status: int, message: str, fix: str) -> None:
        """Plan a refusal."""
        self.answers.append(Refusal(status, error(message, fix)))

    def next_answer(self, body: dict[str, Any]) -> list[Step] | Refusal:
        """Return what was planned, or else an echo."""
        if self.answers:
            return self.answers.popleft()
        return [content(f"You said: {body['messages'][-1]['content']}"), *end()]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that the page closed."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        self.connections.append(request)
        super().process_request(request, client_address)

    def close(self) -> None:
        """Stop at once: browsers keep connections open, which would still be answered."""
        for gate in self.gates:
            gate.set()
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""

    def do_GET(self) -> None:
        """Serve the page's files, the health and the models."""
        if self.path == "/health":
            return self.send_json(*self.server.health)
        if self.path == "/v1/models":
            if self.is_refused():
                return None
            return self.send_json(200, {"object": "list", "data": self.server.models})
        file = PAGE / (self.path.split("?")[0].lstrip("/") or "index.html")
        if file.parent != PAGE or not file.is_file():
            return self.send_json(404, error(f"There is no {self.path}.", ""))
        return self.send_body(200, file.read_bytes(), TYPES[file.suffix])

    def do_POST(self) -> None:
        """Answer as the script says."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.is_refused():
            return None
        asked = Asked(body)
        self.server.asked.append(asked)
        answer = self.server.next_answer(body)
        if isinstance(answer, Refusal):
            return self.send_json(answer.status, answer.body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.stream(answer, asked)

    def stream(self, steps: list[Step], asked: Asked) -> None:
        """Send the steps; stop where the page closes the connection or the script ends."""
        for step in steps:
            if step is BREAK:
                self.close_connection = True
                return
            if isinstance(step, bytes):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(step), step))
                self.wfile.flush()
                continue
            deadline_s = time.monotonic() + GATE_TIMEOUT_S
            while not step.wait(0.01) and time.monotonic() < deadline_s:
                if select.select([self.connection], [], [], 0)[0]:
                    asked.is_closed.set()
                    self.close_connection = True
                    return
        self.wfile.write(b"0\r\n\r\n")

    def is_refused(self) -> bool:
        """Refuse a request without the key, and return whether it was refused."""
        key = self.server.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return False
        self.send_json(401, error("This server needs an API key.", "Send it as a bearer token."))
        return True

    def send_json(self, status: int, body: dict[str, Any]) -> None:
        """Send a JSON answer."""
        self.send_body(status, json.dumps(body).encode(), "application/json")

    def send_body(self, status: int, body: bytes, media_type: str) -> None:
        """Send a whole answer with the headers of the real server."""
        self.send_response(status)
        self.send_header("Content-Type", f"{media_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)


def pieces(text: str, length: int = 4) -> Iterator[str]:
    """Cut a text as tokens would."""
    for start in range(0, len(text), length):
        yield text[start : start + length]


def main() -> None:
    """Serve until Ctrl-C; answers echo, slowly."""
    server = StandIn(int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
    print(server.url)
    server.serve_forever()


if __name__ == "__main__":
    main()
