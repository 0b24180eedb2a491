"""HTTP with patience: read one JSON answer, or one file that resumes where it stopped.

Owns retries, waiting times, Range requests and what each refusal of a hub means.
It does not know which files a model needs or where they are kept; see `hub.py`.

Why not `huggingface_hub.hf_hub_download` (1.33): it downloads to a file with a random
name and deletes that file when the download stops, so an interrupted shard starts again
from zero; it obeys any `Retry-After`, however long, and without a word; and files served
through `hf_xet` report progress but cannot be resumed at all. The hub serves every file
over plain HTTP with Range as well. The client, proxies and certificates are still those
of `huggingface_hub` (`get_session`).
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from qwen_edge.errors import SourceError, UsageError, format_bytes
from qwen_edge.export.hub_refusals import asked_wait_s, explain_status
from qwen_edge.runtime.files.writing import remove_file

_log = logging.getLogger(__name__)

_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# An attempt that brought this much counts as progress: the count of attempts starts anew.
_PROGRESS_BYTES = 1 << 20
# The largest listing seen (a repository of 4,000 files) is below 2 MB.
_MAX_JSON_BYTES = 16 << 20

ReportBytes = Callable[[int, str], None]


@dataclass(frozen=True)
class TransferLimits:
    """How patient a transfer is.

    Attributes:
        max_attempts: Attempts in a row without progress before giving up.
        first_wait_s: Wait after the first failure; doubled after each further one.
        max_wait_s: Longest wait. A server that asks for a longer one is an error.
        timeout_s: Longest silence of the server, while connecting or between bytes.
    """

    max_attempts: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 120.0
    timeout_s: float = 20.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_attempts < 1:
            raise UsageError(
                f"'max_attempts' is {self.max_attempts}; expected 1 or more.",
                "give 1 to try once without retries",
            )
        if min(self.first_wait_s, self.max_wait_s) < 0 or self.timeout_s <= 0:
            raise UsageError(
                "A waiting time is negative or the timeout is not above zero.",
                "give waits of 0 seconds or more and a timeout above 0",
            )


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch: what it is called, where it is, and how long it must be."""

    name: str
    url: str
    size_bytes: int


class _TryAgainError(Exception):
    """A failure that may pass: the reason in words, and how long the server wants to wait."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


def read_json(url: str, *, headers: Mapping[str, str], limits: TransferLimits) -> dict[str, Any]:
    """Return the JSON object that a hub answers with, retrying what may pass.

    Args:
        url: Full address, with the query.
        headers: Request headers, with the token if there is one.
        limits: Attempts, waits and timeout.

    Raises:
        SourceError: No connection, a refusal, or an answer that is not a JSON object.
    """
    for attempt in range(1, limits.max_attempts + 1):
        try:
            return _read_json_once(url, headers, limits)
        except _TryAgainError as failure:
            # An unknown host stays unknown: a person should not wait half a minute for that.
            is_last = attempt == limits.max_attempts or (attempt == 2 and _is_no_network(failure))
            if is_last:
                raise _gave_up(failure, url, attempt) from failure.__cause__
            _wait(failure, attempt, limits, lambda text: _log.warning("%s", text))
    raise AssertionError("the loop returns or raises")


def download_file(
    remote: RemoteFile,
    partial: Path,
    *,
    headers: Mapping[str, str],
    limits: TransferLimits,
    report: ReportBytes,
) -> None:
    """Bring `partial` to the full size of the remote file, going on where it stopped.

    Args:
        remote: Name, address and expected size in bytes.
        partial: Where the bytes go. What is there already is kept and not asked for again.
        headers: Request headers. The token is not passed on to another host.
        limits: Attempts, waits and timeout.
        report: Called with the bytes of this file so far, and a label.

    Raises:
        SourceError: A refusal, too many failures without progress, or a length that
            is not the announced one (`partial` is then removed).

    State:
        After any other exception, `KeyboardInterrupt` included, `partial` holds the
        bytes received so far.
    """
    failures = 0
    have = _size_of(partial)
    while True:
        before = have
        try:
            _receive(remote, partial, before, headers=headers, limits=limits, report=report)
            return
        except _TryAgainError as failure:
            have = _size_of(partial)
            failures = 1 if have - before >= _PROGRESS_BYTES else failures + 1
            if failures >= limits.max_attempts:
                raise _gave_up(failure, remote.url, failures, remote, have) from failure.__cause__
            _wait(failure, failures, limits, _labelled(report, have, remote.name))


def _read_json_once(url: str, headers: Mapping[str, str], limits: TransferLimits) -> dict[str, Any]:
    body = bytearray()
    with _open(url, headers, limits) as response:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_JSON_BYTES:
                raise SourceError(
                    f"The answer of {response.url.host!r} is longer than "
                    f"{format_bytes(_MAX_JSON_BYTES)}; a list of files is far shorter.",
                    "check HF_ENDPOINT",
                    url=url,
                )
        content_type = response.headers.get("content-type", "unknown type")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise SourceError(
            f"{httpx.URL(url).host!r} answered with {content_type!r} instead of the hub's JSON.",
            "check HF_ENDPOINT, and whether a proxy or a login page stands in between",
            url=url,
            content_type=content_type,
        ) from exc
    if not isinstance(answer, dict):
        raise SourceError(
            f"{httpx.URL(url).host!r} answered with a JSON {type(answer).__name__} where the hub "
            "sends an object.",
            "check HF_ENDPOINT",
            url=url,
        )
    return answer


def _receive(
    remote: RemoteFile,
    partial: Path,
    have: int,
    *,
    headers: Mapping[str, str],
    limits: TransferLimits,
    report: ReportBytes,
) -> None:
    """Append to `partial` until it is complete. Raises `_TryAgainError` if it ends early."""
    if have > remote.size_bytes:
        have = 0
    if have == remote.size_bytes and partial.exists():
        report(have, remote.name)
        return
    # Without compression sizes mean what they say, ranges work and no bomb can hide.
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked["Range"] = f"bytes={have}-"
    with _open(remote.url, asked, limits) as response:
        have = _start_of_body(response, have)
        _check_length(response, remote, have, partial)
        with partial.open("ab" if have else "wb") as file:
            report(have, remote.name)
            # No chunk size: httpx would hold back the bytes of an unfinished chunk, and they
            # would be lost when the connection breaks.
            for chunk in response.iter_bytes():
                have += len(chunk)
                if have > remote.size_bytes:
                    break
                file.write(chunk)
                report(have, remote.name)
            file.flush()
            os.fsync(file.fileno())
    if have > remote.size_bytes:
        _refuse_length(remote, partial, "more")
    if have < remote.size_bytes:
        raise _TryAgainError("the connection ended early")


def _start_of_body(response: httpx.Response, have: int) -> int:
    """Return the offset in the file at which this response's body starts.

    A server may ignore the Range (200) or compress in spite of `identity`: then the
    bytes at hand cannot be continued, and the file starts again.
    """
    is_plain = response.headers.get("content-encoding", "identity") == "identity"
    if response.status_code == 206:
        if not is_plain:
            raise _TryAgainError("the server sent a compressed part of the file")
        unit_and_range = response.headers.get("content-range", "")
        if not unit_and_range.startswith(f"bytes {have}-"):
            raise SourceError(
                f"Asked for the bytes from {have:,} on, the server answered with the range "
                f"{unit_and_range!r}.",
                "try again later; if it stays so, check the proxy or mirror in HF_ENDPOINT",
                url=str(response.url),
            )
        return have
    return 0


def _check_length(response: httpx.Response, remote: RemoteFile, have: int, partial: Path) -> None:
    """Refuse before a byte is written when the announced length cannot be right."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return
    announced = response.headers.get("content-length", "")
    if announced.isdigit() and int(announced) != remote.size_bytes - have:
        _refuse_length(remote, partial, format_bytes(have + int(announced)), have + int(announced))


def _refuse_length(
    remote: RemoteFile, partial: Path, sent: str, sent_bytes: int | None = None
) -> None:
    remove_file(partial)
    raise SourceError(
        f"{remote.name!r} should have {remote.size_bytes:,} bytes by the hub's own listing, but "
        f"the server sends {f'{sent_bytes:,} bytes' if sent_bytes is not None else sent}. "
        "What had arrived was removed.",
        "try again later; if it stays so, check the proxy or mirror in HF_ENDPOINT",
        file=remote.name,
        expected_bytes=remote.size_bytes,
        actual_bytes=sent_bytes,
    )


@contextmanager
def _open(url: str, headers: Mapping[str, str], limits: TransferLimits) -> Iterator[httpx.Response]:
    """Open a GET stream. A failure leaves as `_TryAgainError` or as SourceError."""
    from huggingface_hub import get_session

    timeout = httpx.Timeout(limits.timeout_s)
    try:
        # httpx drops the Authorization header when a redirect leads to another origin.
        with get_session().stream("GET", url, headers=dict(headers), timeout=timeout) as response:
            if response.status_code >= 400:
                _refuse_status(response)
            yield response
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
        raise SourceError(
            f"{url!r} is not an address that can be fetched: {exc}.",
            "check HF_ENDPOINT; it should look like 'https://hub.example'",
            url=url,
        ) from exc
    except httpx.TransportError as exc:
        raise _TryAgainError(_words(exc)) from exc
    except httpx.RequestError as exc:
        raise SourceError(
            f"The request to {httpx.URL(url).host!r} went wrong: {_words(exc)}.",
            "check HF_ENDPOINT and the proxy",
            url=url,
        ) from exc


def _refuse_status(response: httpx.Response) -> None:
    """Raise `_TryAgainError` for a status that may pass, SourceError for one that will not."""
    status = response.status_code
    if status in _RETRY_STATUS:
        raise _TryAgainError(f"HTTP {status} ({response.reason_phrase})", asked_wait_s(response))
    code = response.headers.get("x-error-code", "")
    is_signed_in = "authorization" in response.request.headers
    problem, fix = explain_status(status, code, response.url.host, is_signed_in)
    raise SourceError(
        problem,
        fix,
        status=status,
        error_code=code or None,
        server_message=response.headers.get("x-error-message"),
        url=str(response.request.url),
    )


def _wait(
    failure: _TryAgainError, failures: int, limits: TransferLimits, say: Callable[[str], None]
) -> None:
    """Sleep before the next attempt, and say why; refuse a wait beyond the limit."""
    wait_s = min(limits.first_wait_s * 2 ** (failures - 1), limits.max_wait_s)
    if failure.wait_s is not None:
        wait_s = failure.wait_s
    if wait_s > limits.max_wait_s:
        raise SourceError(
            f"The server asks to wait {wait_s:,.0f} s ({failure.reason}); the longest wait here "
            f"is {limits.max_wait_s:,.0f} s.",
            "run the same command later: what has arrived is kept. A token raises the hub's "
            "limits (`hf auth login`)",
            wait_s=wait_s,
            max_wait_s=limits.max_wait_s,
        ) from failure.__cause__
    say(f"{failure.reason}; trying again in {wait_s:,.0f} s")
    time.sleep(wait_s)


def _labelled(report: ReportBytes, have: int, name: str) -> Callable[[str], None]:
    """Return a function that puts a text beside the progress of one file, and in the log."""

    def say(text: str) -> None:
        _log.warning("%s: %s", name, text)
        report(have, f"{name} ({text})")

    return say


def _gave_up(
    failure: _TryAgainError,
    url: str,
    attempts: int,
    remote: RemoteFile | None = None,
    have: int = 0,
) -> SourceError:
    host = httpx.URL(url).host
    if remote is None and _is_no_network(failure):
        return SourceError(
            f"Could not connect to {host!r}: {failure.reason}.",
            "check the network, the proxy and HF_ENDPOINT; without a network give a local "
            "folder, or a model that is in the cache already together with --offline",
            url=url,
            attempts=attempts,
        )
    what = "The list of files" if remote is None else f"{remote.name!r}"
    got = ""
    if remote is not None:
        got = (
            f" {format_bytes(have)} of {format_bytes(remote.size_bytes)} have arrived and are kept."
        )
    return SourceError(
        f"{what} could not be fetched from {host!r} in {attempts} attempts without progress; "
        f"the last one ended with: {failure.reason}.{got}",
        "run the same command again: it goes on where it stopped",
        url=url,
        attempts=attempts,
        file=remote.name if remote else None,
        received_bytes=have if remote else None,
    )


def _is_no_network(failure: _TryAgainError) -> bool:
    return isinstance(failure.__cause__, httpx.ConnectError | httpx.ConnectTimeout)


def _words(exc: Exception) -> str:
    """Return the text of an exception, or its kind where the text is empty."""
    return str(exc).strip().rstrip(".") or type(exc).__name__


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
