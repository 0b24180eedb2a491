"""Reads the body of a request: within bytes and seconds, and only JSON that means one thing.

The only place that reads bodies. Depth and number of values are counted before anything is
parsed, since parsers overflow on the one and block the server on the other. What the fields
mean is for the handlers.
"""

import asyncio
import json
import re
from typing import cast

from starlette.types import Receive

from qwen_edge.runtime.schema import SchemaError, parse_json
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.refusals import ClientLeftError, HttpRefusal

_MARKS = b"[]{},"
_NO_MARKS = bytes(set(range(256)) - set(_MARKS))
_DIGITS_AS_ZEROS = bytes(ord("0") if chr(i).isdigit() and i < 128 else i for i in range(256))
_MAX_DIGITS = 64
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_body(receive: Receive, limits: ServerLimits) -> bytes:
    """Return a request's whole body, however it was cut into pieces.

    Args:
        receive: The request's, as ASGI hands it to handlers. Nothing of it was read before.
        limits: Bytes and seconds.

    Raises:
        HttpRefusal: 413 beyond `max_body_bytes`; 408 beyond `body_s`, or when less came than
            `min_body_bytes_per_s` after `body_grace_s`.
        ClientLeftError: The client closed the connection first.
    """
    start = asyncio.get_running_loop().time()
    body = bytearray()
    while True:
        allowed_s = limits.body_grace_s + len(body) / limits.min_body_bytes_per_s
        try:
            async with asyncio.timeout_at(start + min(limits.body_s, allowed_s)):
                message = await receive()
        except TimeoutError:
            raise _too_slow(len(body), limits) from None
        if message["type"] == "http.disconnect":
            raise ClientLeftError("the client left before its request had ended")
        body += message.get("body", b"")
        if len(body) > limits.max_body_bytes:
            raise body_too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


async def wait_until_client_leaves(receive: Receive) -> None:
    """Return when the client has closed the connection; for a task beside a long answer.

    Args:
        receive: The request's, after its body was read.
    """
    while (await receive())["type"] != "http.disconnect":
        pass


def parse_body(body: bytes, limits: ServerLimits) -> dict[str, object]:
    """Return the JSON object in a body.

    Raises:
        HttpRefusal: 400: it is empty, not UTF-8, not JSON, no object, nested too deeply, of
            too many values, or holds NaN, infinities, a key twice or half a character.
    """
    if not body:
        raise _not_json("The body is empty; expected a JSON object.")
    _check_structure(body, limits)
    try:
        value = parse_json(body)
    except SchemaError as error:
        raise _not_json(f"The body is not the JSON that was expected: {error}.") from None
    if not isinstance(value, dict):
        raise _not_json('The body is no JSON object; expected one like {"model": …}.')
    if _SURROGATE.search(body):
        _check_characters(value)
    return cast("dict[str, object]", value)


def body_too_large(limits: ServerLimits) -> HttpRefusal:
    """Return the refusal of a body beyond the limit, declared or real."""
    return HttpRefusal(
        413,
        f"The body is larger than {limits.max_body_bytes:,} bytes.",
        "send a shorter conversation",
        code="body_too_large",
    )


def _check_structure(body: bytes, limits: ServerLimits) -> None:
    """Refuse too much depth, too many values and endless numbers, before parsing.

    Reads no more of JSON than where its strings are, by steps that take linear time whatever
    the bytes are.
    """
    # Escaped backslashes first: of an odd number of them, the last one escapes what follows.
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 4 * limits.max_json_values:  # two for each key and each value
        raise _too_many_values(limits)
    outside = b"".join(unescaped.split(b'"')[::2])
    marks = outside.translate(None, _NO_MARKS)
    if marks.count(b",") + marks.count(b"[") + marks.count(b"{") > limits.max_json_values:
        raise _too_many_values(limits)
    depth = deepest = 0
    for mark in marks.translate(None, b","):
        depth += 1 if mark in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > limits.max_json_depth:
        raise HttpRefusal(
            400,
            f"The body is nested {deepest:,} deep; at most {limits.max_json_depth:,} is read.",
            "flatten it",
            code="json_too_deep",
        )
    if b"0" * (_MAX_DIGITS + 1) in outside.translate(_DIGITS_AS_ZEROS):
        # Python takes quadratic time for these.
        raise _not_json(f"The body holds a number of more than {_MAX_DIGITS} digits.")


def _check_characters(value: dict[str, object]) -> None:
    r"""Refuse halves of characters, which JSON can write (\ud800) and UTF-8 cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _not_json(
            "The body holds half of a surrogate pair (\\ud800 to \\udfff), which is no character."
        ) from None


def _too_many_values(limits: ServerLimits) -> HttpRefusal:
    return HttpRefusal(
        400,
        f"The body holds more than {limits.max_json_values:,} values.",
        "send fewer, for example text instead of lists of token ids",
        code="json_too_large",
    )


def _not_json(problem: str) -> HttpRefusal:
    return HttpRefusal(
        400,
        problem,
        'send one JSON object in UTF-8, such as {"model": "…", "messages": […]}',
        code="invalid_json",
    )


def _too_slow(num_bytes: int, limits: ServerLimits) -> HttpRefusal:
    return HttpRefusal(
        408,
        f"The body did not end in time: {num_bytes:,} bytes came. At most {limits.body_s:g} s and "
        f"at least {limits.min_body_bytes_per_s:,} bytes/s are expected.",
        "send the whole body at once",
        code="body_too_slow",
    )
