"""Options of `qwen-edge serve`: where, to whom, how many, and when to end."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from qwen_edge.server.settings import DEFAULT_HOST, DEFAULT_PORT, ServerSettings


@dataclass(frozen=True)
class ServeFlags:
    """The options as they were given; checked by those who use them."""

    host: str
    port: int
    api_key_file: Path | None
    random_key: bool
    allow_origin: tuple[str, ...]
    allow_host: tuple[str, ...]
    parallel: int
    queue: int
    request_timeout: float
    max_loaded: int
    unload_after: float | None
    metrics: bool
    ready_file: Path | None
    parent_pid: int | None
    stop_with_stdin: bool
    emit: str | None
    output: Path | None

    def settings(self) -> ServerSettings:
        """Return how answers are to be made.

        Raises:
            UsageError: A number is out of range.
        """
        return ServerSettings(
            parallel=self.parallel,
            queue=self.queue,
            request_timeout_s=self.request_timeout,
            max_loaded=self.max_loaded,
            unload_after_s=self.unload_after,
            has_metrics=self.metrics,
        )


_PATH = click.Path(path_type=Path)
_OPTIONS = (
    click.option(
        "--host",
        metavar="ADDRESS",
        default=DEFAULT_HOST,
        show_default=True,
        help="Address to listen on.",
    ),
    click.option(
        "--port",
        type=int,
        metavar="N",
        default=DEFAULT_PORT,
        show_default=True,
        help="0 takes a free one.",
    ),
    click.option(
        "--api-key-file", type=_PATH, metavar="FILE", help="A file with the key requests need."
    ),
    click.option("--random-key", is_flag=True, help="Make a key; the ready file tells it."),
    click.option("--allow-origin", multiple=True, metavar="URL", help="Let pages from there ask."),
    click.option(
        "--allow-host", multiple=True, metavar="NAME", help="A further name of this server."
    ),
    click.option(
        "--parallel",
        type=int,
        metavar="N",
        default=ServerSettings.parallel,
        show_default=True,
        help="Answers in the making at once.",
    ),
    click.option(
        "--queue",
        type=int,
        metavar="N",
        default=ServerSettings.queue,
        show_default=True,
        help="Answers that may wait; more are refused with 503.",
    ),
    click.option(
        "--request-timeout",
        type=float,
        metavar="S",
        default=ServerSettings.request_timeout_s,
        show_default=True,
        help="Longest time for one request.",
    ),
    click.option(
        "--max-loaded",
        type=int,
        metavar="N",
        default=ServerSettings.max_loaded,
        show_default=True,
        help="Models in memory at once.",
    ),
    click.option(
        "--unload-after", type=float, metavar="S", help="Unload a model that is idle for so long."
    ),
    click.option("--metrics", is_flag=True, help="Serve figures for Prometheus at /metrics."),
    click.option(
        "--ready-file",
        type=_PATH,
        metavar="FILE",
        help="Written when ready, with address, port, process and key; removed at the end.",
    ),
    click.option("--parent-pid", type=int, metavar="PID", help="Stop when this process is gone."),
    click.option("--stop-with-stdin", is_flag=True, help="Stop when standard input ends."),
    click.option(
        "--emit",
        type=click.Choice(["ovms"]),
        help="Serve nothing; write what OpenVINO Model Server is started with.",
    ),
    click.option("--output", type=_PATH, metavar="DIR", help="Where --emit writes; a new folder."),
)


def serve_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command; it receives them as one `flags`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        names = ServeFlags.__dataclass_fields__.keys()
        flags = ServeFlags(**{name: kwargs.pop(name) for name in names})
        function(*args, flags=flags, **kwargs)

    decorated: Callable[..., None] = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
