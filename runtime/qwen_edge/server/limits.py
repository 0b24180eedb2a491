"""All limits of the server in one place, each with its reason.

They bound what one client can make the server hold, parse or wait for. How long answers may be
and how many requests may wait is for the engine; read `http_guard.py`, `connection.py` and
`request_body.py` for who keeps to these.
"""

import dataclasses
import math
from dataclasses import dataclass

from qwen_edge.errors import UsageError


@dataclass(frozen=True)
class ServerLimits:
    """What the server takes from its clients, in bytes, counts and seconds.

    Args:
        max_target_bytes: Path and query of a request. 8,000 is what RFC 9112 asks servers to
            take at least.
        max_head_bytes: Request line and headers together; what most servers allow.
        max_headers: Headers of a request. Browsers send about 15.
        max_body_bytes: A body: a full context of text is about 1 MB, escaped as JSON up to 6.
        max_json_depth: Lists and objects within each other in a body. Deep enough for schemas
            that people write, and far from where parsers and grammar engines overflow.
        max_json_values: Values in a body: 100,000 are parsed in about 0.1 s, during which
            nobody else is served.
        max_connections: Connections at a time. Beyond it the longest idle one is closed.
        head_s: From the first byte of a request, or the connection, to the end of its headers.
        body_s: From the end of the headers to the end of the body.
        body_grace_s: How long a body may take before its rate counts.
        min_body_bytes_per_s: Least mean rate of a body. A phone line of 1990 was faster.
        idle_s: How long a connection is kept after an answer.
        stall_s: How long a client may take nothing of what is written to it.
        linger_s: How long a refused body is still read, so that the refusal arrives.
        stop_s: From the signal to stop to the end of the process.
    """

    max_target_bytes: int = 8_192
    max_head_bytes: int = 16_384
    max_headers: int = 100
    max_body_bytes: int = 8 * 1024 * 1024
    max_json_depth: int = 64
    max_json_values: int = 100_000
    max_connections: int = 256
    head_s: float = 10.0
    body_s: float = 30.0
    body_grace_s: float = 5.0
    min_body_bytes_per_s: int = 1_024
    idle_s: float = 30.0
    stall_s: float = 30.0
    linger_s: float = 2.0
    stop_s: float = 5.0

    def __post_init__(self) -> None:
        """Check that every limit is a number above zero.

        Raises:
            UsageError: Naming the field and what was expected.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(field.default, int) and not isinstance(value, int):
                is_number = False
            if not is_number or not math.isfinite(value) or value <= 0:
                kind = "a whole number" if isinstance(field.default, int) else "a number"
                raise UsageError(
                    f"{field.name} is {value!r}; expected {kind} above 0.",
                    f"leave {field.name} out, or give for example {field.default:,}",
                    field=field.name,
                )
