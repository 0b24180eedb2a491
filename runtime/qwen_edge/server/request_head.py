"""What the line and headers of a request say, and which requests go no further.

Every check here is pure and raises `HttpRefusal`; the body is not looked at. They are in the
order in which `check_head` runs them. Read `http_guard.py` for what happens around them.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

from qwen_edge.server.access import AccessKey
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.refusals import HttpRefusal
from qwen_edge.server.request_body import body_too_large

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_JSON_TYPE = re.compile(r'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE)


@dataclass(frozen=True)
class GuardSettings:
    """Who may ask what.

    Args:
        hosts: Names and addresses, in lower case and without port, that a Host header may
            hold; IPv6 addresses in brackets. `guard_settings` makes them.
        takes_any_address: Whether any IP address may stand there, for a server that listens on
            all of them. Only names can be rebound to another address by a foreign page.
        origins: Origins beside the server's own whose pages may ask; exactly as browsers
            write them.
        key: The bearer key, or None where everybody on this machine may ask.
        open_paths: Paths that need no key to be read.
        limits: Bytes and counts.
    """

    hosts: frozenset[str]
    takes_any_address: bool = False
    origins: frozenset[str] = frozenset()
    key: AccessKey | None = None
    open_paths: frozenset[str] = frozenset({"/", "/health"})
    limits: ServerLimits = field(default_factory=ServerLimits)


@dataclass(frozen=True)
class RequestHead:
    """The line and headers of a request.

    Args:
        method: As sent; methods are case-sensitive.
        path: Percent-decoded.
        num_target_bytes: Path and query, as sent.
        version: "1.0" or "1.1".
        headers: Name in lower case → all values.
        num_headers: All of them.
        num_head_bytes: Request line and headers.
    """

    method: str
    path: str
    num_target_bytes: int
    version: str
    headers: Mapping[bytes, list[bytes]]
    num_headers: int
    num_head_bytes: int

    def get(self, name: bytes) -> str | None:
        """Return a header's value; None where it is absent.

        Raises:
            HttpRefusal: It stands there twice; whoever reads the other one is fooled.
        """
        values = self.headers.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise HttpRefusal(
                400,
                f"The header {name.decode('ascii')!r} stands there {len(values)} times.",
                "send it once",
                code="duplicate_header",
            )
        return values[0].decode("latin-1")

    @property
    def own_origin(self) -> str:
        """Return the origin of pages that this server sends under the name it was asked by."""
        return f"http://{(self.get(b'host') or '').lower()}"


def read_head(scope: Scope) -> RequestHead:
    """Return the head of an ASGI request."""
    headers: dict[bytes, list[bytes]] = {}
    num_headers = num_bytes = 0
    for name, value in scope["headers"]:
        headers.setdefault(name, []).append(value)
        num_headers += 1
        num_bytes += len(name) + len(value) + 4
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    num_target_bytes = len(raw_path) + len(scope["query_string"])
    return RequestHead(
        method=scope["method"],
        path=scope["path"],
        num_target_bytes=num_target_bytes,
        version=scope["http_version"],
        headers=headers,
        num_headers=num_headers,
        num_head_bytes=num_bytes + num_target_bytes + len(scope["method"]) + 12,
    )


def check_head(head: RequestHead, settings: GuardSettings) -> None:
    """Raise HttpRefusal unless a request may be handed to the application.

    State:
        Changes nothing. Preflights pass: whoever calls answers them.
    """
    check_size(head, settings.limits)
    check_framing(head)
    check_host(head, settings)
    check_origin(head, settings)
    check_method(head)
    check_path(head)
    if is_preflight(head):
        return
    check_key(head, settings)
    check_body_headers(head, settings.limits)


def check_size(head: RequestHead, limits: ServerLimits) -> None:
    """Refuse heads beyond the limits; the parser's own only holds for those in pieces."""
    if head.num_target_bytes > limits.max_target_bytes:
        raise target_too_long(limits)
    if head.num_headers > limits.max_headers or head.num_head_bytes > limits.max_head_bytes:
        raise head_too_large(limits)


def target_too_long(limits: ServerLimits) -> HttpRefusal:
    """Return the refusal of a path and query beyond the limit."""
    return HttpRefusal(
        414,
        f"The path and query are longer than {limits.max_target_bytes:,} bytes.",
        "send texts in the body",
        code="target_too_long",
    )


def head_too_large(limits: ServerLimits) -> HttpRefusal:
    """Return the refusal of a head beyond the limits."""
    return HttpRefusal(
        431,
        f"The request has more than {limits.max_headers:,} headers or "
        f"{limits.max_head_bytes:,} bytes of them.",
        "send fewer and shorter headers; clear the cookies of this address",
        code="headers_too_large",
    )


def check_framing(head: RequestHead) -> None:
    """Refuse requests of which two readers could see two different ends."""
    if head.version not in {"1.0", "1.1"}:
        raise HttpRefusal(505, "Only HTTP/1.1 is spoken here.", "use it", code="http_version")
    if b"transfer-encoding" not in head.headers:
        return
    if b"content-length" in head.headers or head.version == "1.0":
        raise HttpRefusal(
            400,
            "The request says in two ways where its body ends.",
            "send Content-Length or Transfer-Encoding, and the latter with HTTP/1.1 only",
            code="ambiguous_length",
        )


def check_host(head: RequestHead, settings: GuardSettings) -> None:
    """Refuse requests for another host: a foreign page may point its own name at us.

    The port is free: it says nothing about who asks, and forwarded ports differ.
    """
    host = head.get(b"host")
    if host is None:
        if head.version == "1.0":  # no browser
            return
        raise HttpRefusal(400, "The Host header is missing.", "send one", code="host_missing")
    match = _HOST.fullmatch(host.lower())
    if match is not None and int(match[2] or 0) <= 65_535:
        name = match[1]
        if name in settings.hosts or (settings.takes_any_address and _is_address(name)):
            return
    raise HttpRefusal(
        403,
        "The Host header names another server than this one.",
        "ask by the address that the server prints, or start it with --allow-host NAME",
        code="host_not_allowed",
    )


def check_origin(head: RequestHead, settings: GuardSettings) -> None:
    """Refuse what pages of other servers send, also where they could not read the answer."""
    origin = head.get(b"origin")
    if origin is None:
        if head.get(b"sec-fetch-site") in {"cross-site", "same-site"} and not _is_visit(head):
            raise _foreign_page()
    elif origin not in settings.origins and origin != head.own_origin:
        raise _foreign_page()
    if "websocket" in (head.get(b"upgrade") or "").lower():
        raise HttpRefusal(400, "There is no WebSocket here.", "use HTTP", code="no_websocket")


def check_method(head: RequestHead) -> None:
    """Refuse methods that nothing here has; OPTIONS is for browsers' preflights only."""
    if head.method in METHODS and (head.method != "OPTIONS" or is_preflight(head)):
        return
    raise HttpRefusal(
        405,
        "This method is not known here.",
        "use GET, POST or DELETE",
        code="method_not_allowed",
        headers=[(b"allow", b"GET, HEAD, POST, DELETE")],
    )


def check_path(head: RequestHead) -> None:
    """Refuse paths that two readers could take for two places, and those of no text."""
    path = head.path
    if not path.startswith("/") or not path.isprintable() or "\ufffd" in path or "\\" in path:
        raise HttpRefusal(
            400, "The path is not one that can be meant.", "check the address", code="bad_path"
        )
    segments = path[1:].split("/")
    if "%" in path or "" in segments[:-1] or not {".", ".."}.isdisjoint(segments):
        raise HttpRefusal(404, "There is nothing here.", "check the address", code="not_found")


def check_key(head: RequestHead, settings: GuardSettings) -> None:
    """Refuse requests without the key, where there is one and the path needs it."""
    if settings.key is None:
        return
    if head.path in settings.open_paths and head.method in {"GET", "HEAD"}:
        return
    values = head.headers.get(b"authorization", [])
    # Compared also where none was sent: both take the same time.
    if settings.key.is_in(values[0].decode("latin-1") if len(values) == 1 else None):
        return
    raise HttpRefusal(
        401,
        "This server needs its key, which the request does not carry.",
        "send the header Authorization: Bearer KEY",
        code="invalid_api_key",
        headers=[(b"www-authenticate", b'Bearer realm="qwen-edge"')],
    )


def check_body_headers(head: RequestHead, limits: ServerLimits) -> None:
    """Refuse bodies that are no JSON, encoded, or declared too large.

    A page may send text/plain and forms to anywhere without asking; JSON it may not.
    """
    length = head.get(b"content-length")
    if length is not None and int(length) > limits.max_body_bytes:
        raise body_too_large(limits)
    if head.method != "POST":
        return
    kind = head.get(b"content-type") or ""
    if not _JSON_TYPE.fullmatch(kind.strip()):
        raise HttpRefusal(
            415,
            "The Content-Type is not application/json in UTF-8.",
            "send the header Content-Type: application/json",
            code="unsupported_content_type",
        )
    if (head.get(b"content-encoding") or "identity").lower() != "identity":
        raise HttpRefusal(
            415,
            "The body is compressed, which is not read here.",
            "send it without Content-Encoding",
            code="unsupported_content_encoding",
            headers=[(b"accept-encoding", b"identity")],
        )


def is_preflight(head: RequestHead) -> bool:
    """Return whether a browser asks if a page of another origin may ask."""
    return (
        head.method == "OPTIONS"
        and b"origin" in head.headers
        and b"access-control-request-method" in head.headers
    )


def _is_visit(head: RequestHead) -> bool:
    """Return whether a person follows a link to the chat page, in a window of its own."""
    return (
        head.method == "GET"
        and head.path == "/"
        and head.get(b"sec-fetch-mode") == "navigate"
        and head.get(b"sec-fetch-dest") == "document"
    )


def _is_address(name: str) -> bool:
    """Return whether a Host header holds an IP address, as URLs have it."""
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return (address.version == 6) == name.startswith("[")


def _foreign_page() -> HttpRefusal:
    return HttpRefusal(
        403,
        "The request comes from a page of another origin.",
        "start the server with --allow-origin ORIGIN, if that page is to ask",
        code="origin_not_allowed",
    )
