"""Stands in for `qwen-edge serve` in the tests of the sidecar: it obeys the same options.

It knows no model: the answer to a conversation is "You said: " and the last message, word by word.
Options of its own make it slow, let it fail, or crash.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("package")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--random-key", action="store_true")
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--parent-pid", type=int)
    parser.add_argument("--stop-with-stdin", action="store_true")
    parser.add_argument("--refuse", help="say this and end with exit code 3")
    parser.add_argument("--load-s", type=float, default=0, help="how long loading takes")
    parser.add_argument("--load-fails", help="why the model cannot be loaded")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--word-s", type=float, default=0, help="how long a word takes")
    parser.add_argument("--ignore-stdin", action="store_true", help="do not end kindly")
    return parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    """Answers as the server does, as far as the sidecar asks."""

    options: argparse.Namespace
    key: str | None
    started_s: float
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._tell_health()
        elif self._is_allowed():
            self._get()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._is_allowed():
            self._stream(body)

    def _tell_health(self) -> None:
        if self.options.load_fails:
            error = {"message": self.options.load_fails, "fix": "Export it again."}
            self._send(503, {"status": "failed", "error": error})
        elif time.monotonic() < self.started_s + self.options.load_s:
            self._send(503, {"status": "loading", "progress": 0.5})
        else:
            self._send(200, {"status": "ok"})

    def _is_allowed(self) -> bool:
        if self.key is None or self.headers.get("authorization") == f"Bearer {self.key}":
            return True
        self._send(401, {"error": {"message": "The key is wrong.", "code": "key", "fix": "Ask."}})
        return False

    def _get(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": "stand-in", "object": "model"}]})
        elif self.path == "/environment":
            self._send(200, dict(os.environ))
        elif self.path == "/crash":
            sys.stderr.write("about to crash\n")
            sys.stderr.flush()
            os._exit(70)

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any]) -> None:
        question = body["messages"][-1]["content"]
        if question == "refuse":
            error = {"message": "Too long.", "code": "context_full", "fix": "Shorten it."}
            self._send(400, {"error": error})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self._write({"choices": [{"delta": {"reasoning_content": "Hm. "}}]})
            for word in f"You said: {question}".split(" "):
                if word == "crash":
                    os._exit(70)
                if word == "error":
                    self._write({"error": {"message": "The device is gone.", "fix": "Restart."}})
                    self.wfile.write(b"0\r\n\r\n")
                    return
                time.sleep(self.options.word_s)
                self._write({"choices": [{"delta": {"content": f"{word} "}}]})
            end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
            self._write({**end, "timings": {"predicted_per_second": 12.5}})
            self._write({"choices": [], "usage": {"completion_tokens": 7}})
            self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def _write(self, chunk: dict[str, Any]) -> None:
        # One byte after the other, so that readers get them cut anywhere.
        for byte in b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n":
            self.wfile.write(b"1\r\n" + bytes([byte]) + b"\r\n")
        self.wfile.flush()


def main() -> None:
    """Serve until told to stop."""
    options = read_options()
    if options.refuse:
        sys.stderr.write(f"{options.refuse}\n")
        sys.exit(3)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    Handler.options, Handler.started_s = options, time.monotonic()
    Handler.key = secrets.token_urlsafe(24) if options.random_key else None
    if options.ready_file and not options.never_ready:
        write_ready_file(options.ready_file, server.server_port)

    def stop() -> None:
        if options.ready_file:
            options.ready_file.unlink(missing_ok=True)
        os._exit(0)

    if options.stop_with_stdin and not options.ignore_stdin:
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop()), daemon=True).start()
    if options.parent_pid:
        threading.Thread(target=watch, args=(options.parent_pid, stop), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.ignore_stdin else lambda *_: stop())
    server.serve_forever()


def write_ready_file(path: Path, port: int) -> None:
    """Tell where the server is, all at once."""
    ready = {
        "url": f"http://127.0.0.1:{port}",
        "port": port,
        "pid": os.getpid(),
        "api_key": Handler.key,
    }
    temporary = path.with_suffix(".part")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(ready), encoding="utf-8")
    os.replace(temporary, path)


def watch(pid: int, stop: Any) -> None:
    """Stop when a process is gone."""
    while True:
        try:
            os.kill(pid, 0)
        except OSError:
            stop()
        time.sleep(0.1)


if __name__ == "__main__":
    main()
