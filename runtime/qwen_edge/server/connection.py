"""One connection: uvicorn's HTTP/1.1 protocol with a limit on every wait.

Adds what uvicorn leaves open: time for the head of a request, clients that take nothing of
their answers, a bound on connections that idle ones make room under, and refusals that arrive
although the request is still being sent. It does not look at requests; read `http_guard.py`
for that, and `listening.py` for the server that makes these.
"""

import asyncio
import socket
import sys
from typing import Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen_edge.server.http_guard import CLIENT_LEFT, CONNECTION_EXTENSION
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.refusals import HttpRefusal, bare_answer
from qwen_edge.server.request_head import head_too_large, target_too_long
from qwen_edge.server.request_log import log_request

# Bytes that are read and parsed before others have their turn. asyncio's 262,144 can be 40,000
# chunks of a body, which take the parser half a second.
_READ_BYTES = 16_384
# What the system holds for a client that reads slowly. Of its usual 4 MB, a third must be taken
# before it tells us anything, so slow clients would look like those that read nothing.
_SEND_BYTES = 65_536


class GuardedConnection(H11Protocol):
    """A connection and its requests, one after another.

    State:
        Waiting (for a request, or the next), answering, or closing. `is_gone` once nothing
        that is written arrives any more.
    """

    limits: ClassVar[ServerLimits] = ServerLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; refuse when all other connections are being answered."""
        self._wire = transport
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES
        wire = transport.get_extra_info("socket")
        if wire is not None:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        self._is_closing = False
        self._num_dropped_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._writing_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self.is_gone = False
        self.waiting_since = self.loop.time()
        super().connection_made(_ClosingTransport(self))
        if len(self.connections) > self.limits.max_connections and not self._make_room():
            self._refuse(_too_many_connections())
            return
        self._head_timer = self.loop.call_later(self.limits.head_s, self._end_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer; whoever answers learns that the client has left."""
        self.is_gone = True
        self._is_closing = True
        self._stop_timers()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Take bytes; those that come after the last answer are thrown away."""
        if not self._is_closing:
            super().data_received(data)
            return
        self._num_dropped_bytes += len(data)
        if self._num_dropped_bytes > self.limits.max_body_bytes:
            self.drop()

    def handle_events(self) -> None:
        """Read what has come, and see to it that the wait for more has an end."""
        if self._is_closing:
            return
        super().handle_events()
        rest, _ = self.conn.trailing_data
        if not self.is_waiting:
            self._head_timer = _stop(self._head_timer)
            self.scope["extensions"] = {CONNECTION_EXTENSION: {"connection": self}}
            # Behind a request that is being answered, only reading shows that the client left.
            if not self.cycle.more_body and len(rest) < self.limits.max_head_bytes:
                self.flow.resume_reading()
        elif rest and self._head_timer is None and not self._is_closing:
            self._head_timer = self.loop.call_later(self.limits.head_s, self._end_head)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless this one was answered before it had ended."""
        self.waiting_since = self.loop.time()
        if self.conn.their_state is h11.SEND_BODY:
            self.close()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; uvicorn calls this while it handles the parser's error."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        rest, _ = self.conn.trailing_data
        if status == 431 and self.is_waiting:
            is_target = b"\n" not in rest
            self._refuse((target_too_long if is_target else head_too_large)(self.limits))
            return
        self._refuse(
            HttpRefusal(
                501 if status == 501 else 400,
                "What was sent is no HTTP/1.1 request that is understood here.",
                "check the program that sent it",
                code="bad_request",
            )
        )

    def shutdown(self) -> None:
        """End at once when nothing is being answered, else after the answer."""
        if self._is_closing:
            self.drop()
            return
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.drop()

    def pause_writing(self) -> None:
        """Notice that the client takes less than is written to it."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Notice that it has caught up."""
        super().resume_writing()
        self._writing_timer = _stop(self._writing_timer)

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def close(self, *, is_midway: bool = False) -> None:
        """End when everything that was written has been taken.

        Args:
            is_midway: Whether the client may still be sending; known where a body has begun.
                Reading then goes on for a while: closing would make the client's system throw
                the answer away.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self._stop_timers()
        self._unset_keepalive_if_required()
        if self._wire.is_closing():
            return
        is_midway = is_midway or self.conn.their_state is h11.SEND_BODY
        if is_midway and self._wire.can_write_eof():
            self.flow.resume_reading()
            self._wire.write_eof()
            self._linger_timer = self.loop.call_later(self.limits.linger_s, self._wire.close)
        else:
            self._wire.close()
        self._watch_writing()

    def drop(self) -> None:
        """End at once, whatever was not yet taken."""
        self.is_gone = True
        self._is_closing = True
        self._stop_timers()
        self.connections.discard(self)
        self._wire.abort()

    def _make_room(self) -> bool:
        """Drop the connection that has waited longest; return whether there was one."""
        others = cast("set[GuardedConnection]", self.connections)
        waiting = [one for one in others if one is not self and one.can_be_dropped]
        if not waiting:
            return False
        min(waiting, key=lambda one: one.waiting_since).drop()
        return True

    @property
    def can_be_dropped(self) -> bool:
        """Whether it serves nobody: no request, and no answer on its way."""
        return self.is_waiting and self._wire.get_write_buffer_size() == 0

    def _end_head(self) -> None:
        """Give up waiting for the head of a request."""
        self._head_timer = None
        rest, _ = self.conn.trailing_data
        if rest:
            self._refuse(_head_too_slow(self.limits))
        else:  # nothing was asked, so nothing is answered
            self.close()

    def _refuse(self, refusal: HttpRefusal) -> None:
        """Answer what is no request, or a body that is none, and end."""
        log_request("-", "-", status=refusal.status, seconds=0.0, note=refusal.code)
        if not self.is_waiting:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.drop()
                return
        self._wire.write(bare_answer(refusal))
        self.close(is_midway=True)
        self.is_gone = True

    def _watch_writing(self, last_size: int | None = None) -> None:
        """Drop the connection when the client has taken nothing since the last look."""
        self._writing_timer = _stop(self._writing_timer)
        size = self._wire.get_write_buffer_size()
        if last_size is not None and size >= last_size:
            note = "client takes nothing"
            log_request("-", "-", status=CLIENT_LEFT, seconds=self.limits.stall_s, note=note)
            self.drop()
        elif size > 0:
            self._writing_timer = self.loop.call_later(
                self.limits.stall_s, self._watch_writing, size
            )

    def _stop_timers(self) -> None:
        self._head_timer = _stop(self._head_timer)
        self._writing_timer = _stop(self._writing_timer)
        self._linger_timer = _stop(self._linger_timer)


class _ClosingTransport(asyncio.Transport):
    """The connection's transport as uvicorn sees it: closing goes through the connection."""

    def __init__(self, connection: GuardedConnection) -> None:
        super().__init__()
        self._connection = connection
        self._wire = connection._wire

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._wire.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._connection._is_closing or self._wire.is_closing()

    def close(self) -> None:
        self._connection.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closing():
            self._wire.write(data)

    def pause_reading(self) -> None:
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._wire.resume_reading()


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer, if there is one; return what takes its place: none."""
    if timer is not None:
        timer.cancel()
    return None


def _too_many_connections() -> HttpRefusal:
    return HttpRefusal(
        503,
        "All connections of this server are in use.",
        "ask again later",
        code="too_many_connections",
        headers=[(b"retry-after", b"1")],
    )


def _head_too_slow(limits: ServerLimits) -> HttpRefusal:
    return HttpRefusal(
        408,
        f"The line and headers of the request did not end within {limits.head_s:g} s.",
        "send them at once",
        code="head_too_slow",
    )
