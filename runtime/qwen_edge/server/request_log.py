"""One line of the log for each request: method, path, status, time. Never bodies or keys.

Texts from outside are made printable here, so that nobody can write lines of their own into a
log or commands into a terminal.
"""

import logging

_LOGGER = logging.getLogger("qwen_edge.server.requests")
_MAX_CHARS = 200


def printable(text: str, max_chars: int = _MAX_CHARS) -> str:
    """Return a text in one line without control characters, cut to a length.

    Args:
        text: Anything a client sent.
        max_chars: Where it is cut; "…" shows that it was.
    """
    cut = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in cut
    )


def log_request(method: str, path: str, *, status: int, seconds: float, note: str = "") -> None:
    """Write one line about a request that has ended.

    Args:
        method: As the client sent it.
        path: Without its query, which may hold secrets.
        status: What was answered; 499 when the client left before.
        seconds: From its headers to its end.
        note: One word, such as the code of a refusal.
    """
    if not _LOGGER.isEnabledFor(logging.INFO):
        return
    _LOGGER.info(
        "%s %s %d in %.0f ms%s",
        printable(method, 16),
        printable(path),
        status,
        seconds * 1000,
        f" ({note})" if note else "",
    )
