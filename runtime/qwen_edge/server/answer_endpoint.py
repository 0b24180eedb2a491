"""One request for answers from its first byte to its last: read, admit, load, answer.

The same for every interface; what differs is in `api/`. What is refused before an answer has
begun has a status of its own, what goes wrong within a stream is a last frame of it.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from qwen_edge.errors import EdgeError
from qwen_edge.server.admission import Admission
from qwen_edge.server.answering import Answering
from qwen_edge.server.api.event_stream import AnswerWriter, data_frame, encode_json
from qwen_edge.server.api.jobs import Job
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.metrics import Metrics
from qwen_edge.server.model_registry import ModelRegistry
from qwen_edge.server.refusals import (
    ClientLeftError,
    HttpRefusal,
    error_body,
    error_bytes,
    error_headers,
    to_refusal,
)
from qwen_edge.server.request_body import parse_body, read_body
from qwen_edge.server.settings import ServerSettings
from qwen_edge.server.starting import Starting, refuse_while_stopping

_LOGGER = logging.getLogger(__name__)
_JSON_HEADERS = [(b"content-type", b"application/json")]
# A proxy that gathers an answer before it sends it on would defeat the stream.
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]


class AnswerEndpoint:
    """An ASGI application for the requests of one interface.

    Args:
        read_job: Body to job.
        registry: The models.
        admission: The places, shared by all interfaces.
        settings: Of the server.
        limits: Of requests.
        starting: Whether the server is ready to answer.
        metrics: What is counted.
    """

    def __init__(
        self,
        read_job: Callable[[object], Job],
        *,
        registry: ModelRegistry,
        admission: Admission,
        settings: ServerSettings,
        limits: ServerLimits,
        starting: Starting,
        metrics: Metrics,
    ) -> None:
        self._read_job = read_job
        self._registry = registry
        self._admission = admission
        self._settings = settings
        self._limits = limits
        self._starting = starting
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = _Reply(send)
        try:
            await self._answer(receive, reply)
        except ClientLeftError:
            self._metrics.count_request("client left")
        except (EdgeError, HttpRefusal) as error:
            # A model that is closed under a request gives errors that are no fault of it.
            refusal = refuse_while_stopping() if self._starting.is_stopping else to_refusal(error)
            self._metrics.count_request(str(refusal.status))
            await reply.refuse(refusal)
        except Exception as error:
            _LOGGER.exception("A request met a bug")
            self._metrics.count_request("500")
            await reply.refuse(error)

    async def _answer(self, receive: Receive, reply: "_Reply") -> None:
        body = await read_body(receive, self._limits)
        self._admission.check()
        job = self._read_job(parse_body(body, self._limits))
        entry = self._registry.find(job.model)
        self._starting.check()
        with self._admission.enter(job.num_answers):
            async with (
                Answering(receive, self._settings.request_timeout_s) as answering,
                self._registry.use(entry, answering.wait_for) as model,
            ):
                await answering.open(lambda tell: job.open(model, tell))
                writer = job.make_writer(model, entry.name)
                await self._write(answering, writer, reply, is_stream=job.is_stream)
        self._metrics.count_request("200")

    async def _write(
        self, answering: Answering, writer: AnswerWriter, reply: "_Reply", *, is_stream: bool
    ) -> None:
        if is_stream:
            await reply.send_frames(writer.first_frames())
        async with aclosing(answering.events()) as events:
            async for index, new in events:
                self._metrics.count_events(new)
                writer.add(index, new)
                if is_stream:
                    await reply.send_frames(writer.frames(index, new))
        if is_stream:
            await reply.send_frames(writer.last_frames())
            await reply.end()
        else:
            await reply.send_whole(encode_json(writer.whole()))


class _Reply:
    """What is sent back; knows how far it is.

    Args:
        send: Of the request.

    State:
        After the headers nothing but frames may follow.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_begun = False

    async def send_frames(self, frames: Iterable[bytes]) -> None:
        """Send frames of a stream, all in one piece."""
        if not self._is_begun:
            await self._begin(200, _STREAM_HEADERS)
        body = b"".join(frames)
        if body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """End a stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def send_whole(self, body: bytes) -> None:
        """Send an answer in one piece."""
        length = (b"content-length", b"%d" % len(body))
        await self._begin(200, [*_JSON_HEADERS, length])
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, error: BaseException) -> None:
        """Send an error, as an answer of its own or as the last frame of a stream."""
        try:
            if self._is_begun:
                await self.send_frames([data_frame(error_body(error))])
                await self.end()
                return
            refusal = to_refusal(error)
            body = error_bytes(refusal)
            await self._begin(refusal.status, error_headers(refusal, body))
            await self._send({"type": "http.response.body", "body": body})
        except ClientLeftError:
            return  # nobody reads it

    async def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._is_begun = True
        message = {"type": "http.response.start", "status": status, "headers": list(headers)}
        await self._send(message)
