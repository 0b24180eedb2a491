"""The outermost application: refuses what must not arrive, and finishes what went wrong.

Around every request: checks of its head, CORS, security headers, one line in the log, and an
answer for every error that handlers raise. What a request asks for is not its business; read
`request_head.py` for the checks and `connection.py` for what happens before there is a request.
"""

import logging
import re
import time
from collections.abc import Iterable, Sequence
from typing import Protocol, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_edge.errors import EdgeError, UsageError
from qwen_edge.server.access import AccessKey
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.refusals import (
    SECURITY_HEADERS,
    ClientLeftError,
    Header,
    HttpRefusal,
    error_bytes,
    error_headers,
    to_refusal,
)
from qwen_edge.server.request_head import (
    GuardSettings,
    RequestHead,
    check_head,
    is_preflight,
    read_head,
)
from qwen_edge.server.request_log import log_request

_LOGGER = logging.getLogger("qwen_edge.server")
# The name under which `connection.py` puts itself among a request's extensions.
CONNECTION_EXTENSION = "qwen_edge.connection"
CLIENT_LEFT = 499  # nginx's number for it; only in the log
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HOST_NAME = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9][a-z0-9._-]*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+){0,63}")
# Only the guard decides on these.
_NOT_THE_APPLICATIONS = frozenset({b"server", b"access-control-allow-origin"})


class ClientConnection(Protocol):
    """What a request's answer has to know of the connection it goes to."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing that is sent arrives any more."""

    def drop(self) -> None:
        """End the connection at once, so that the client sees a broken answer."""


def guard_settings(
    hosts: Iterable[str],
    *,
    takes_any_address: bool = False,
    key: AccessKey | None = None,
    allow_hosts: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
    open_paths: Iterable[str] = (),
    limits: ServerLimits | None = None,
) -> GuardSettings:
    """Return checked settings.

    Args:
        hosts: Names and addresses the server is bound to, as `Listener.hosts` has them.
        takes_any_address: As `Listener.is_everywhere`.
        key: The bearer key, or None.
        allow_hosts: What `--allow-host` named: names without scheme, port or path.
        allow_origins: What `--allow-origin` named: as browsers write them.
        open_paths: Paths beside / and /health that need no key to be read: the page's files.
        limits: The server's, or the defaults.

    Raises:
        UsageError: A host or origin that cannot be one, or that would mean everybody.
    """
    for name in allow_hosts:
        if not _HOST_NAME.fullmatch(name.lower()):
            raise UsageError(
                f"--allow-host is {name!r}; expected a name without scheme, port and path.",
                "give for example --allow-host my-laptop.local",
                option="allow_host",
            )
    for origin in allow_origins:
        if not _ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--allow-origin is {origin!r}; expected scheme://host or scheme://host:port in "
                "lower case. There is no sign for everybody: every page could ask then.",
                "give for example --allow-origin http://localhost:3000",
                option="allow_origin",
            )
    return GuardSettings(
        hosts=frozenset(name.lower() for name in (*_LOOPBACK_NAMES, *hosts, *allow_hosts)),
        takes_any_address=takes_any_address,
        origins=frozenset(allow_origins),
        key=key,
        open_paths=frozenset(("/", "/health", *open_paths)),
        limits=limits or ServerLimits(),
    )


class HttpGuard:
    """An ASGI application around another one.

    Args:
        app: Gets only requests that passed every check. May raise `HttpRefusal`, `EdgeError`
            or anything else before its answer begins; it is answered here. What it sends raises
            `ClientLeftError` once nobody takes it.
        settings: Who may ask what.
    """

    def __init__(self, app: ASGIApp, settings: GuardSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; never raises what a handler raised."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        start = time.perf_counter()
        answer = _Answer(send, scope, self._settings)
        try:
            await self._serve(scope, receive, answer)
        finally:
            log_request(
                scope["method"],
                scope["path"],
                status=answer.status or CLIENT_LEFT,
                seconds=time.perf_counter() - start,
                note=answer.note,
            )

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Check, hand on, and answer what is raised."""
        is_checked = False
        try:
            head = read_head(scope)
            answer.allow(self._allowed_origin(head))
            check_head(head, self._settings)
            is_checked = True
            if is_preflight(head):
                await answer.send_preflight(head)
            else:
                await self._app(scope, receive, answer.send)
        except ClientLeftError:
            answer.note = "client left"
        except Exception as error:
            if not isinstance(error, HttpRefusal | EdgeError):
                _LOGGER.exception("A request met an error of the server's own")
            # A request that was refused unread leaves nothing that could follow it.
            await answer.refuse(to_refusal(error), closes=not is_checked)

    def _allowed_origin(self, head: RequestHead) -> bytes | None:
        """Return the origin that may read the answer, besides the server's own."""
        values = head.headers.get(b"origin", [])
        is_allowed = len(values) == 1 and values[0].decode("latin-1") in self._settings.origins
        return values[0] if is_allowed else None


class _Answer:
    """One answer on its way to the client.

    State:
        `status` is 0 until the answer began, `is_complete` once its last part was sent.
    """

    def __init__(self, send: Send, scope: Scope, settings: GuardSettings) -> None:
        self._send = send
        extension = scope.get("extensions", {}).get(CONNECTION_EXTENSION, {})
        self._connection = cast("ClientConnection | None", extension.get("connection"))
        self._cors: list[Header] = [(b"vary", b"Origin")] if settings.origins else []
        self.status = 0
        self.is_complete = False
        self.note = ""

    def allow(self, origin: bytes | None) -> None:
        """Let pages of an origin read this answer."""
        if origin is not None:
            self._cors.append((b"access-control-allow-origin", origin))
            self._cors.append((b"access-control-expose-headers", b"Retry-After"))

    async def send(self, message: Message) -> None:
        """Send a part of the answer; returns when the client took so much that more fits.

        Raises:
            ClientLeftError: Nobody takes the rest.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._complete(message.get("headers", []))}
        await self._send(message)
        is_body = message["type"] == "http.response.body"
        self.is_complete = is_body and not message.get("more_body", False)
        if not self.is_complete and self._connection is not None and self._connection.is_gone:
            raise ClientLeftError("the client left before its answer had ended")

    async def refuse(self, refusal: HttpRefusal, *, closes: bool = False) -> None:
        """Answer with an error; break off what has begun already.

        Args:
            refusal: What to say.
            closes: Whether the connection ends with it.
        """
        self.note = refusal.code
        if self.status:
            if not self.is_complete and self._connection is not None:
                self._connection.drop()
            return
        body = error_bytes(refusal)
        headers = error_headers(refusal, body)
        if closes:
            headers.append((b"connection", b"close"))
        await self._send_whole(refusal.status, headers, body)

    async def send_preflight(self, head: RequestHead) -> None:
        """Tell a browser what pages of an allowed origin may send."""
        asked = head.get(b"access-control-request-headers") or ""
        headers: list[Header] = [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-max-age", b"600"),
        ]
        if _HEADER_NAMES.fullmatch(asked):
            headers.append((b"access-control-allow-headers", asked.encode("ascii")))
        if head.get(b"access-control-request-private-network") == "true":
            headers.append((b"access-control-allow-private-network", b"true"))
        await self._send_whole(204, headers, b"")

    async def _send_whole(self, status: int, headers: list[Header], body: bytes) -> None:
        try:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})
        except ClientLeftError:
            self.note = "client left"

    def _complete(self, given: Iterable[Sequence[bytes]]) -> list[Header]:
        """Return the application's headers with those that every answer has."""
        headers: list[Header] = [
            (name.lower(), value)
            for name, value in given
            if name.lower() not in _NOT_THE_APPLICATIONS
        ]
        present = {name for name, _ in headers}
        headers += [header for header in SECURITY_HEADERS if header[0] not in present]
        return headers + self._cors
