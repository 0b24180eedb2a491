"""Refusals as clients see them: a status and OpenAI's error body.

Every deliberate error of ours becomes one here, and every other exception a plain 500. This
module knows neither requests nor sockets; read `http_guard.py` for who sends them.
"""

import json
import math
from collections.abc import Sequence
from http import HTTPStatus

from qwen_edge.errors import (
    ContextFullError,
    EdgeError,
    MissingExtraError,
    QueueFullError,
    ResourceError,
    UsageError,
)

Header = tuple[bytes, bytes]

_RETRY_AFTER_S = 1  # when an error does not know better
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
# Sent with every answer, unless the application says otherwise.
SECURITY_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class HttpRefusal(Exception):  # noqa: N818 - an answer, not a fault
    """A request is not answered as asked; the client is told why and what to do.

    Args:
        status: The HTTP status, 400 or above.
        problem: What is wrong, as in `EdgeError`. Never holds a key or a prompt.
        fix: One thing to do.
        code: One word for programs, such as "body_too_large".
        kind: OpenAI's `type`; follows from the status when left out.
        param: The field of the body that is meant.
        headers: Sent besides, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        problem: str,
        fix: str = "",
        *,
        code: str,
        kind: str | None = None,
        param: str | None = None,
        headers: Sequence[Header] = (),
    ) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem
        self.fix = fix
        self.code = code
        self.kind = kind or _KINDS.get(status, "invalid_request_error")
        self.param = param
        self.headers = tuple(headers)


class ClientLeftError(OSError):
    """The client closed the connection, or took nothing for too long.

    Whatever was computed for it should stop. An OSError, as ASGI has it for sending to nobody.
    """


def to_refusal(error: BaseException) -> HttpRefusal:
    """Return how an error is answered; what is no deliberate error is a 500 without details.

    Args:
        error: A refusal (returned as it is), an `EdgeError`, or a bug.
    """
    if isinstance(error, HttpRefusal):
        return error
    if not isinstance(error, EdgeError):
        return HttpRefusal(
            500,
            "The server met an error of its own while answering. This is a bug in qwen-edge.",
            "look at the server's log for what happened, and report it",
            code="internal_error",
        )
    if isinstance(error, ContextFullError):
        return HttpRefusal(
            400,
            error.problem,
            error.fix,
            code="context_length_exceeded",
            kind="exceed_context_size_error",
            param=_param_of(error) or "messages",
        )
    if isinstance(error, ResourceError):
        code = "queue_full" if isinstance(error, QueueFullError) else "out_of_resources"
        wait = (b"retry-after", b"%d" % _retry_after_s(error))
        return HttpRefusal(503, error.problem, error.fix, code=code, headers=(wait,))
    # A missing extra is the server's own lack, not the request's.
    if isinstance(error, UsageError) and not isinstance(error, MissingExtraError):
        return HttpRefusal(
            400, error.problem, error.fix, code="invalid_value", param=_param_of(error)
        )
    return HttpRefusal(500, error.problem, error.fix, code=_code_of(error))


def error_body(error: BaseException) -> dict[str, object]:
    """Return OpenAI's error object for an answer's body or for an event within a stream."""
    refusal = to_refusal(error)
    return {
        "error": {
            "message": refusal.problem,
            "type": refusal.kind,
            "param": refusal.param,
            "code": refusal.code,
            "fix": refusal.fix or None,
        }
    }


def error_bytes(refusal: HttpRefusal) -> bytes:
    """Return the error object as JSON, in ASCII so that nothing in it can be misread."""
    return json.dumps(error_body(refusal)).encode("ascii")


def error_headers(refusal: HttpRefusal, body: bytes) -> list[Header]:
    """Return the headers of a refusal with this body."""
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *refusal.headers,
    ]


def bare_answer(refusal: HttpRefusal) -> bytes:
    """Return a whole HTTP answer, for connections on which no request was understood."""
    body = error_bytes(refusal)
    phrase = HTTPStatus(refusal.status).phrase.encode("ascii")
    headers = [*error_headers(refusal, body), *SECURITY_HEADERS, (b"connection", b"close")]
    lines = [b"HTTP/1.1 %d %s" % (refusal.status, phrase)]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _retry_after_s(error: EdgeError) -> int:
    """Return after how many whole seconds a client should ask again."""
    wait_s = error.facts.get("retry_after_s", _RETRY_AFTER_S)
    if isinstance(wait_s, int | float) and math.isfinite(wait_s):
        return max(1, math.ceil(wait_s))
    return _RETRY_AFTER_S


def _param_of(error: EdgeError) -> str | None:
    """Return the field that an error names, as its facts have it."""
    for name in ("param", "field", "option"):
        value = error.facts.get(name)
        if isinstance(value, str):
            return value
    return None


def _code_of(error: EdgeError) -> str:
    """Return an error's class as a word: DeviceError becomes device_error."""
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
