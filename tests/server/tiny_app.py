"""A tiny application behind the real guard and server, in a thread or as a process.

    python tiny_app.py [--stop-s SECONDS] [--stuck]

prints its port and serves until a signal. Attacks are tried on this one; it needs no model.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from qwen_edge.errors import QueueFullError
from qwen_edge.server.access import AccessKey
from qwen_edge.server.http_guard import HttpGuard, guard_settings
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.listening import EdgeServer, listen, run_server
from qwen_edge.server.refusals import ClientLeftError
from qwen_edge.server.request_body import parse_body, read_body, wait_until_client_leaves

SECRET = "a secret of the handler"


class TinyApp:
    """Answers a few paths.

    State:
        `seen` has what arrived, `ended` how long answers ended.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self.seen: list[str] = []
        self.ended: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        self.seen.append(f"{scope['method']} {scope['path']}")
        name = scope["path"].strip("/").replace("/", "_") or "page"
        handler = getattr(self, name, self.not_there)
        if name == "v1_client":
            await answer(send, {"client": scope["client"][0], "scheme": scope["scheme"]})
            return
        await handler(receive, send)

    async def not_there(self, receive: Any, send: Any) -> None:
        await answer(send, {"error": "nothing here"}, 404)

    async def page(self, receive: Any, send: Any) -> None:
        headers = [
            (b"content-type", b"text/html"),
            (b"Server", b"tiny"),
            (b"cache-control", b"no-cache"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"<p>page"})

    async def health(self, receive: Any, send: Any) -> None:
        await answer(send, {"status": "ok"})

    async def v1_models(self, receive: Any, send: Any) -> None:
        await answer(send, {"data": []})

    async def v1_echo(self, receive: Any, send: Any) -> None:
        await answer(send, parse_body(await read_body(receive, self.limits), self.limits))

    async def v1_hang(self, receive: Any, send: Any) -> None:
        """Make an answer for ever, until the client leaves."""
        await read_body(receive, self.limits)
        self.seen.append("hanging")
        await wait_until_client_leaves(receive)
        self.ended.append("client left")

    async def v1_begun(self, receive: Any, send: Any) -> None:
        """Begin to answer before the body was read."""
        await begin(send)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await wait_until_client_leaves(receive)

    async def v1_deaf(self, receive: Any, send: Any) -> None:
        """Hang without looking whether the client is there."""
        self.seen.append("deaf")
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.append("cancelled")

    async def v1_stream(self, receive: Any, send: Any) -> None:
        """Send for ever."""
        await begin(send)
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
                await asyncio.sleep(0)
        except ClientLeftError:
            self.ended.append("client left")
            raise

    async def v1_large(self, receive: Any, send: Any) -> None:
        """Send more than any buffer of the system holds, in one piece."""
        await begin(send)
        await send({"type": "http.response.body", "body": bytes(8_000_000)})

    async def v1_bug(self, receive: Any, send: Any) -> None:
        raise ValueError(SECRET)

    async def v1_bug_midway(self, receive: Any, send: Any) -> None:
        await begin(send)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ValueError(SECRET)

    async def v1_full(self, receive: Any, send: Any) -> None:
        raise QueueFullError("Full.", "ask later", retry_after_s=2.5)


async def begin(send: Any, status: int = 200) -> None:
    """Send the headers of an answer."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def answer(send: Any, body: object, status: int = 200) -> None:
    """Send a whole answer."""
    await begin(send, status)
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


class ServerInThread:
    """The tiny application on a free port of its own."""

    def __init__(
        self,
        limits: ServerLimits | None = None,
        key: str | None = None,
        host: str = "127.0.0.1",
        on_stopping: Callable[[], None] | None = None,
        **settings: Any,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.app = TinyApp(self.limits)
        access = AccessKey(key) if key else None
        self.listener = listen(host, 0, has_key=access is not None)
        self.port = self.listener.port
        guard = guard_settings(self.listener.hosts, key=access, limits=self.limits, **settings)
        started = threading.Event()
        self.server = EdgeServer(
            HttpGuard(self.app, guard),
            self.listener,
            self.limits,
            on_started=started.set,
            on_stopping=on_stopping,
        )
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError("the server did not start")

    @property
    def num_connections(self) -> int:
        return len(self.server.server_state.connections)

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(10)
        if self._thread.is_alive():
            raise RuntimeError("the server did not stop")


def main() -> None:
    """Serve until a signal."""
    limits = ServerLimits()
    if "--stop-s" in sys.argv:
        limits = ServerLimits(stop_s=float(sys.argv[sys.argv.index("--stop-s") + 1]))
    listener = listen(port=0, has_key=False)
    app = TinyApp(limits)

    if "--stuck" in sys.argv:
        threading.Thread(target=threading.Event().wait).start()

    def tell(text: str) -> None:
        print(text, flush=True)

    run_server(
        HttpGuard(app, guard_settings(listener.hosts, limits=limits)),
        listener,
        limits,
        on_started=lambda: tell(str(listener.port)),
        on_stopping=lambda: tell("stopping"),
    )
    tell("stopped")


if __name__ == "__main__":
    main()
