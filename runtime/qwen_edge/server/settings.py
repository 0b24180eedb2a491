"""What a server is told at its start; every default is here."""

from dataclasses import dataclass

from qwen_edge.errors import UsageError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080


@dataclass(frozen=True)
class ServerSettings:
    """How requests are answered.

    Args:
        parallel: Answers in the making at once; they share the engine's steps.
        queue: Answers that may wait for their turn; more are refused.
        request_timeout_s: Longest time for one request, waiting included.
        max_loaded: Most models in memory at once.
        unload_after_s: How long an idle model stays in memory; None for always.
        has_metrics: Whether `/metrics` is there.

    Raises:
        UsageError: A number is out of range.
    """

    parallel: int = 8
    queue: int = 64
    request_timeout_s: float = 3_600.0
    max_loaded: int = 1
    unload_after_s: float | None = None
    has_metrics: bool = False

    def __post_init__(self) -> None:
        for name, low in (
            ("parallel", 1),
            ("queue", 0),
            ("request_timeout_s", 1),
            ("max_loaded", 1),
            ("unload_after_s", 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= 1_000_000:
                flag = name.removesuffix("_s").replace("_", "-")
                raise UsageError(
                    f"--{flag} is {value}; expected {low:,} to 1,000,000.",
                    f"give a number in that range, or leave --{flag} out",
                    option=name,
                )
