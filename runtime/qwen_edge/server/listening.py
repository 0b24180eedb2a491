"""Binds the server's socket, the only place that does, and runs uvicorn on it.

Addresses that other machines reach are refused without a key. Starting, stopping and signals
are here; what happens on a connection is in `connection.py`.
"""

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from qwen_edge.errors import EdgeError, UsageError
from qwen_edge.server.access import KEY_FIX
from qwen_edge.server.connection import GuardedConnection
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.settings import DEFAULT_HOST, DEFAULT_PORT

# Accepted in one turn of the loop at most, so this bounds how far connections overshoot.
_BACKLOG = 128
_MAX_PORT = 65_535
# Of the time to stop: what handlers may take, and when the process is ended if it still runs.
_HANDLERS_SHARE = 0.6
_PROCESS_SHARE = 0.9
_LOGGER = logging.getLogger("qwen_edge.server")


@dataclass(frozen=True)
class Listener:
    """A socket that listens.

    Args:
        socket: Owned by whoever runs a server on it.
        host: As it was asked for.
        address: The IP address it is bound to.
        port: The port it is bound to, also where 0 was asked for.
    """

    socket: socket.socket
    host: str
    address: str
    port: int

    @property
    def is_everywhere(self) -> bool:
        """Whether it listens on all addresses of this machine."""
        return ipaddress.ip_address(self.address).is_unspecified

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names under which it may be asked, as a Host header has them."""
        return () if self.is_everywhere else (_in_url(self.host), _in_url(self.address))

    @property
    def url(self) -> str:
        """Where a program on this machine finds it."""
        if not self.is_everywhere:
            return f"http://{_in_url(self.address)}:{self.port}"
        return f"http://{'[::1]' if ':' in self.address else '127.0.0.1'}:{self.port}"


def listen(host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, *, has_key: bool) -> Listener:
    """Bind a socket and listen on it.

    Args:
        host: An IP address of this machine, or a name of one.
        port: 0 takes a free one.
        has_key: Whether every request will need a key. Without, only addresses that no other
            machine reaches are taken.

    Raises:
        UsageError: The address is not this machine's, is reachable by others and there is no
            key, or the port is none.
        EdgeError: The port is taken, or this account may not use it.
    """
    if isinstance(port, bool) or not 0 <= port <= _MAX_PORT:
        raise UsageError(
            f"--port is {port!r}; expected 0 to {_MAX_PORT}.", "use --port 8080", option="port"
        )
    family, address = _resolve(host)
    if not has_key and not ipaddress.ip_address(address).is_loopback:
        raise UsageError(
            f"Other machines reach {host!r}, and the server has no key: everybody on the network "
            "could use it and read its answers.",
            "leave out --host, or " + KEY_FIX,
            option="host",
        )
    # The protocol is named since asyncio sends small parts at once on sockets of TCP only;
    # otherwise every answer waits 40 ms for the client to acknowledge its headers.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        _set_options(bound, family)
        bound.bind((address, port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise _cannot_listen(error, host, port) from error
    return Listener(bound, host, address, bound.getsockname()[1])


class EdgeServer(uvicorn.Server):
    """uvicorn with our limits, and with an end that is an end.

    Args:
        app: The outermost application, an `HttpGuard`.
        listener: Closed when the server has stopped.
        limits: Bytes, counts and seconds.
        on_started: Called in the server's loop when it answers.
        on_stopping: Called in the server's loop when it has been asked to stop and still
            answers what has begun; handlers should end within `stop_s` of it.
        is_process: Whether the process is nothing but this server. What is left of it when
            `stop_s` is nearly over is then ended with 0, also after `run` has returned, and
            without running what was registered for its end.

    State:
        `run` returns when the server has stopped: by SIGINT or SIGTERM where it runs in the
        main thread, or by `stop` from any thread.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: Listener,
        limits: ServerLimits | None = None,
        *,
        on_started: Callable[[], None] | None = None,
        on_stopping: Callable[[], None] | None = None,
        is_process: bool = False,
    ) -> None:
        self._limits = limits or ServerLimits()
        super().__init__(_build_config(app, self._limits))
        self._listener = listener
        self._on_started = on_started
        self._on_stopping = on_stopping
        self._is_process = is_process

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until stopped."""
        with contextlib.closing(self._listener.socket):
            super().run(sockets or [self._listener.socket])

    def stop(self) -> None:
        """Ask the server to stop, from any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, accept connections, and say so."""
        try:
            await super().startup(sockets)
        except SystemExit:
            raise RuntimeError("the application did not start; its error was logged") from None
        if self._on_started is not None:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, tell the handlers, and wait for them for a while."""
        if self._is_process:
            end = threading.Timer(self._limits.stop_s * _PROCESS_SHARE, _end_process)
            end.daemon = True
            end.start()
        if self._on_stopping is not None:
            self._on_stopping()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on a signal; on a second one, without waiting for what has begun.

        uvicorn's own keeps signals and raises them again at the end, which would end the process
        by the signal instead of with 0.
        """
        self.force_exit = self.should_exit
        self.should_exit = True


def run_server(
    app: ASGIApp,
    listener: Listener,
    limits: ServerLimits | None = None,
    *,
    on_started: Callable[[], None] | None = None,
    on_stopping: Callable[[], None] | None = None,
) -> None:
    """Serve in this process until a signal ends it; see `EdgeServer` for the arguments."""
    EdgeServer(
        app, listener, limits, on_started=on_started, on_stopping=on_stopping, is_process=True
    ).run()


def _build_config(app: ASGIApp, limits: ServerLimits) -> uvicorn.Config:
    """Return uvicorn's configuration, with nothing left to the environment."""

    class LimitedConnection(GuardedConnection):
        """Connections of this server."""

    LimitedConnection.limits = limits
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=LimitedConnection,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        workers=1,
        # A header must not decide who a client is.
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        # Both are passed to asyncio, which takes parts of seconds.
        timeout_keep_alive=cast("int", limits.idle_s),
        timeout_graceful_shutdown=cast("int", limits.stop_s * _HANDLERS_SHARE),
        h11_max_incomplete_event_size=limits.max_head_bytes,
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether uvicorn's record says what the guard has not logged already."""
    return not str(record.msg).startswith(("Exception in ASGI app", "ASGI callable returned"))


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Return the first address of a host, IPv4 before IPv6."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _not_ours(host) from error
    if not host or not found:
        raise _not_ours(host)
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, str(address[0])


def _set_options(bound: socket.socket, family: socket.AddressFamily) -> None:
    """Keep the port to ourselves, yet usable again right after an earlier server."""
    if sys.platform == "win32":
        # There SO_REUSEADDR would let another program take over the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _cannot_listen(error: OSError, host: str, port: int) -> EdgeError:
    """Return what a system's refusal to bind means."""
    if error.errno == errno.EADDRINUSE:
        return EdgeError(
            f"Port {port:d} of {host} is in use by another program.",
            f"choose another with --port {port % _MAX_PORT + 1:d}, or any free one with --port 0",
            port=port,
        )
    if error.errno == errno.EACCES:
        return EdgeError(
            f"This account may not listen on port {port:d} of {host}.",
            "choose one above 1023 with --port 8080, or any free one with --port 0",
            port=port,
        )
    return _not_ours(host)


def _not_ours(host: str) -> UsageError:
    return UsageError(
        f"--host is {host!r}, which is no address of this machine.",
        "leave out --host for 127.0.0.1, or give an address that this machine has",
        option="host",
    )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _end_process() -> None:
    _LOGGER.warning("Something did not end in time; the process ends without it.")
    logging.shutdown()
    os._exit(0)
