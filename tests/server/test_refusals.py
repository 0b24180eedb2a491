"""What clients are told when they are not answered."""

import json

import pytest

from qwen_edge.errors import (
    ContextFullError,
    DeviceError,
    EdgeError,
    GrammarError,
    MissingExtraError,
    PackageError,
    ParityError,
    QueueFullError,
    ResourceError,
    UnknownProfileError,
    UsageError,
)
from qwen_edge.server.refusals import (
    SECURITY_HEADERS,
    HttpRefusal,
    bare_answer,
    error_body,
    error_bytes,
    to_refusal,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (UsageError("p", "f"), 400, "invalid_request_error", "invalid_value"),
        (GrammarError("p", "f"), 400, "invalid_request_error", "invalid_value"),
        (UnknownProfileError("p", "f"), 400, "invalid_request_error", "invalid_value"),
        (
            ContextFullError("p", "f"),
            400,
            "exceed_context_size_error",
            "context_length_exceeded",
        ),
        (QueueFullError("p", "f"), 503, "unavailable_error", "queue_full"),
        (ResourceError("p", "f"), 503, "unavailable_error", "out_of_resources"),
        (DeviceError("p", "f"), 500, "server_error", "device_error"),
        (ParityError("p", "f"), 500, "server_error", "parity_error"),
        (PackageError("p", "f"), 500, "server_error", "package_error"),
        (MissingExtraError("p", "f"), 500, "server_error", "missing_extra_error"),
        (EdgeError("p", "f"), 500, "server_error", "edge_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, EdgeError) else "",
)
def test_every_error_of_ours_has_its_answer(
    error: EdgeError, status: int, kind: str, code: str
) -> None:
    refusal = to_refusal(error)
    assert (refusal.status, refusal.kind, refusal.code) == (status, kind, code)
    assert (refusal.problem, refusal.fix) == ("p", "f")
    assert (b"retry-after" in dict(refusal.headers)) == (status == 503)


def test_the_body_is_openais() -> None:
    refusal = HttpRefusal(
        404, "No such model.", "ask /v1/models", code="model_not_found", param="model"
    )
    assert error_body(refusal) == {
        "error": {
            "message": "No such model.",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
            "fix": "ask /v1/models",
        }
    }
    assert to_refusal(refusal) is refusal


@pytest.mark.parametrize("fact", ["param", "field", "option"])
def test_the_field_that_is_meant_is_named(fact: str) -> None:
    assert to_refusal(UsageError("p", "f", **{fact: "temperature"})).param == "temperature"


@pytest.mark.parametrize(
    ("given", "expected"),
    [(2.5, b"3"), (0, b"1"), (-4, b"1"), (float("nan"), b"1"), ("soon", b"1"), (7, b"7")],
)
def test_retry_after_is_a_number_of_seconds(given: object, expected: bytes) -> None:
    refusal = to_refusal(QueueFullError("p", "f", retry_after_s=given))
    assert dict(refusal.headers)[b"retry-after"] == expected


@pytest.mark.parametrize("bug", [ValueError("/home/me/secret"), KeyError("secret"), MemoryError()])
def test_bugs_tell_nothing_of_what_they_were(bug: Exception) -> None:
    body = error_bytes(to_refusal(bug))
    assert b"secret" not in body
    assert b"Traceback" not in body
    assert to_refusal(bug).status == 500
    assert b"bug in qwen-edge" in body


def test_texts_from_outside_stay_within_the_body() -> None:
    """Neither a line end nor half a character gets out of the JSON of an answer."""
    refusal = HttpRefusal(400, 'a\r\nSet-Cookie: b\r\n\r\n"\ud800', "f", code="c")
    head, _, body = bare_answer(refusal).partition(b"\r\n\r\n")
    assert b"Set-Cookie" not in head
    assert json.loads(body)["error"]["message"].startswith("a\r\nSet-Cookie: b")
    assert body.isascii()


def test_bare_answers_are_whole_answers() -> None:
    refusal = HttpRefusal(503, "p", code="c", headers=[(b"retry-after", b"1")])
    head, _, body = bare_answer(refusal).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 503 Service Unavailable"
    assert b"content-length: %d" % len(body) in lines
    assert b"connection: close" in lines
    assert b"retry-after: 1" in lines
    assert all(name + b": " + value in lines for name, value in SECURITY_HEADERS)
