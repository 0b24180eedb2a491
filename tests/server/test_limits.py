"""The limits themselves, and the log line."""

import logging
from typing import Any

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.request_log import log_request, printable


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_body_bytes", 0),
        ("max_body_bytes", -1),
        ("max_body_bytes", 1.5),
        ("max_headers", True),
        ("head_s", 0),
        ("head_s", float("inf")),
        ("body_s", float("nan")),
        ("stop_s", "5"),
        ("idle_s", None),
    ],
)
def test_limits_that_are_none_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{field} is .* expected .*above 0") as caught:
        ServerLimits(**{field: value})
    assert caught.value.facts["field"] == field


def test_seconds_may_be_whole_numbers() -> None:
    assert ServerLimits(head_s=3).head_s == 3


@pytest.mark.trust("T-SEC-07")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/v1/models", "/v1/models"),
        ("/a\nINFO: all is well", r"/a\nINFO: all is well"),
        ("/\x1b[31mred\x07", r"/\x1b[31mred\x07"),
        ("/\u202egnp.exe", r"/\u202egnp.exe"),
        ("/\u2028line", r"/\u2028line"),
        ("/\ud800", r"/\ud800"),
        ("/模型/Grüße", "/模型/Grüße"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_texts_from_outside_are_printed_in_one_line(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.trust("T-SEC-07")
def test_one_line_says_what_was_asked_and_how_it_went(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qwen_edge.server.requests")
    log_request("POST\n" + "X" * 50, "/v1/\r\nx", status=200, seconds=1.2345, note="note")
    [record] = caplog.records
    assert record.getMessage() == r"POST\nXXXXXXXXXX… /v1/\r\nx 200 in 1234 ms (note)"
