"""A small model hub on 127.0.0.1 for tests: real HTTP, one repository, faults on order.

It serves what `huggingface_hub` 1.33 and qwen-edge ask for: the listing
(`/api/models/<id>/revision/<revision>`) and files (`/<id>/resolve/<revision>/<name>`),
large ones by a redirect to a second server, as the real hub does. Every request is kept
in `requests`.

    python hub_stand_in.py FOLDER [--id ORG/NAME] [--cut NAME BYTES]

serves a folder, prints its address, and ends when its standard input closes. `--cut` breaks
the connection once, after so many bytes of a large file.
"""

import argparse
import gzip
import hashlib
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".safetensors", "tokenizer.json")
_BLOCK_BYTES = 1 << 16


@dataclass
class Fault:
    """What goes wrong with the next requests whose path contains a text.

    Attributes:
        where: Part of the path; "cdn" for the second server.
        status: Answer with this status instead.
        headers: Extra headers of the answer.
        body: Answer with this body instead of the content.
        cut_after: Close the connection after so many bytes of the body.
        stall_s: Send nothing for this long before the body.
        content_length: Announce this length.
        ignore_range: Send the whole file with 200 where a part was asked for.
        compress: Compress the body, though nobody asked for it.
        location: Redirect to here.
        times: How many requests it applies to.
    """

    where: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut_after: int | None = None
    stall_s: float = 0.0
    content_length: int | None = None
    ignore_range: bool = False
    compress: bool = False
    location: str | None = None
    times: int = 1


@dataclass
class Request:
    """One request as it arrived, and how many bytes of body were sent."""

    server: str
    path: str
    headers: dict[str, str]
    sent_bytes: int = 0

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("range")


class HubStandIn:
    """The two servers and what they serve. A context manager."""

    def __init__(self, files: dict[str, bytes], *, repo_id: str = "org/tiny") -> None:
        self.files = files
        self.repo_id = repo_id
        self.commit = COMMIT
        self.earlier: set[str] = set()  # commits whose files can still be had, with today's content
        self.tags = {"v1": COMMIT}
        self.card: dict[str, object] = {"license": "apache-2.0"}
        self.gated: bool | str = False
        self.listed: dict[str, dict[str, Any]] = {}
        self.needs_token: str | None = None
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._servers = [self._make_server("hub"), self._make_server("cdn")]

    @property
    def url(self) -> str:
        """The address of the hub, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def cdn_url(self) -> str:
        """The address of the second server: another origin."""
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def __enter__(self) -> "HubStandIn":
        for server in self._servers:
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
            ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked(self, part: str, server: str | None = None) -> list[Request]:
        """Return the requests whose path contains a text."""
        return [r for r in self.requests if part in r.path and server in {None, r.server}]

    def listing(self, revision: str) -> dict[str, Any] | None:
        """Return the hub's description of a revision, or None if there is no such one."""
        if revision not in {"main", self.commit} and self.tags.get(revision) != self.commit:
            return None
        siblings = [self._sibling(name) for name in sorted(self.files)]
        return {
            "id": self.repo_id,
            "sha": self.commit,
            "siblings": siblings,
            "cardData": self.card,
            "gated": self.gated,
        }

    def take_fault(self, where: str) -> Fault:
        """Return the fault that applies to a request, counting it down."""
        with self._lock:
            for fault in self.faults:
                if fault.where in where and fault.times > 0:
                    fault.times -= 1
                    return fault
        return Fault("")

    def _sibling(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        git_oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_oid}
        if name.endswith(_LARGE):
            entry["lfs"] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 134,
            }
        changes = self.listed.get(name, {})
        return entry | changes

    def _make_server(self, name: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            stand_in = hub
            server_name = name

        return _Server(("127.0.0.1", 0), Handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that goes away in the middle is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    stand_in: HubStandIn
    server_name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: requests are kept instead."""

    def do_GET(self) -> None:
        hub = self.stand_in
        path = unquote(urlsplit(self.path).path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        self._request = Request(self.server_name, self.path, headers)
        hub.requests.append(self._request)
        fault = hub.take_fault(f"{self.server_name}:{path}")
        if fault.location is not None:
            self._answer(302, b"", {"Location": fault.location})
        elif fault.status or fault.body is not None:
            self._answer(fault.status or 200, fault.body or b"", fault.headers)
        elif self.server_name == "cdn":
            self._send_file(path.removeprefix("/"), fault)
        elif hub.needs_token and headers.get("authorization") != f"Bearer {hub.needs_token}":
            self._refuse(401, "RepoNotFound")
        elif path.startswith(f"/api/models/{hub.repo_id}/revision/"):
            self._send_listing(path.rsplit("/revision/", 1)[1])
        elif path.startswith(
            tuple(f"/{hub.repo_id}/resolve/{commit}/" for commit in (hub.commit, *hub.earlier))
        ):
            self._send_or_redirect(path.rsplit("/", 1)[1], fault)
        else:
            self._refuse(404, "RepoNotFound")

    def _send_listing(self, revision: str) -> None:
        listing = self.stand_in.listing(revision)
        if listing is None:
            self._refuse(404, "RevisionNotFound")
            return
        body = json.dumps(listing).encode()
        self._answer(200, body, {"Content-Type": "application/json"})

    def _send_or_redirect(self, name: str, fault: Fault) -> None:
        if name not in self.stand_in.files:
            self._refuse(404, "EntryNotFound")
        elif name.endswith(_LARGE):
            target = f"{self.stand_in.cdn_url}/{name}?signature=secret"
            self._answer(302, b"", {"Location": target})
        else:
            self._send_file(name, fault)

    def _send_file(self, name: str, fault: Fault) -> None:
        content = self.stand_in.files[name]
        asked = self._request.range
        start = 0
        if asked and not fault.ignore_range:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault.compress:
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        length = len(body) if fault.content_length is None else fault.content_length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        time.sleep(fault.stall_s)
        self._send_body(body if fault.cut_after is None else body[: fault.cut_after])
        if fault.cut_after is not None or length != len(body):
            self.close_connection = True

    def _send_body(self, body: bytes) -> None:
        try:
            for start in range(0, len(body), _BLOCK_BYTES):
                self.wfile.write(body[start : start + _BLOCK_BYTES])
                self._request.sent_bytes += len(body[start : start + _BLOCK_BYTES])
        except OSError:
            # The client went away; that is its right.
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b'{"error": "no"}', {"X-Error-Code": code})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send_body(body)


def main() -> None:
    """Serve a folder until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--id", default="org/tiny")
    parser.add_argument("--cut", nargs=2, metavar=("NAME", "BYTES"))
    options = parser.parse_args()
    files = {p.name: p.read_bytes() for p in options.folder.iterdir() if p.is_file()}
    with HubStandIn(files, repo_id=options.id) as hub:
        if options.cut:
            hub.faults.append(Fault(f"cdn:/{options.cut[0]}", cut_after=int(options.cut[1])))
        sys.stdout.write(f"{hub.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
