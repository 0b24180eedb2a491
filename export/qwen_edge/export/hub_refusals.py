"""What a hub's refusal means in plain words, and how long it wants one to wait.

It does not know what was asked for; `transfer.py` puts the two together.
"""

import email.utils
import re
import time

import httpx

# The hub's own header when nothing remains: `"api";r=0;t=55` is 55 seconds.
# Source: draft-ietf-httpapi-ratelimit-headers-09, as read by huggingface_hub 1.33.
_RATE_LIMIT = re.compile(r"r=0\s*;\s*t=(\d+)")


def explain_status(status: int, code: str, host: str, is_signed_in: bool) -> tuple[str, str]:
    """Return the problem and the fix behind a final status of a hub.

    Source: `huggingface_hub.utils.hf_raise_for_status`, 1.33 (X-Error-Code values).
    """
    log_in = "run `hf auth login`, or set HF_TOKEN"
    if code == "GatedRepo":
        return (
            f"{host!r} refuses access (HTTP {status}): the model is gated and its terms must be "
            "accepted first.",
            f"accept the terms on the model's page, then {log_in} to a token of that account",
        )
    if code == "RevisionNotFound":
        return (
            f"{host!r} has the model, but not this revision (HTTP {status}).",
            "give a branch, a tag or a full commit hash that the model's page lists",
        )
    if code == "EntryNotFound":
        return (
            f"{host!r} lists a file that it does not have (HTTP {status}).",
            "try again later; the repository may be changing",
        )
    if status == 401 and is_signed_in and code != "RepoNotFound":
        return (
            f"{host!r} does not accept the token (HTTP 401).",
            "make a new token and run `hf auth login`, or set HF_TOKEN to it",
        )
    if status in {401, 404} or code == "RepoNotFound":
        return (
            f"{host!r} has no such model, or does not show it (HTTP {status}).",
            f"check the spelling of org/name; if the model is private, {log_in}",
        )
    if status == 403:
        return (
            f"{host!r} refuses access (HTTP 403): the token may not read this model.",
            f"ask for access on the model's page, or {log_in} to a token that may read it",
        )
    return (
        f"{host!r} answered with HTTP {status}, which is neither a file nor a reason to wait.",
        "check HF_ENDPOINT and the proxy",
    )


def asked_wait_s(response: httpx.Response) -> float | None:
    """Return the wait in seconds that the server asks for, or None.

    Reads `Retry-After` (seconds or a date) and the hub's own `RateLimit` header.
    """
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    when = email.utils.parsedate_tz(value) if value else None
    if when is not None:
        return max(0.0, email.utils.mktime_tz(when) - time.time())
    limit = _RATE_LIMIT.search(response.headers.get("ratelimit", ""))
    return float(limit.group(1)) if limit is not None else None
