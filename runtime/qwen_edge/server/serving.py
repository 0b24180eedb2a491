"""From packages and settings to a server that runs until it is stopped."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen_edge.runtime.manifest import Manifest
from qwen_edge.server.access import AccessKey
from qwen_edge.server.app import Server
from qwen_edge.server.http_guard import HttpGuard, guard_settings
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.listening import EdgeServer, Listener, listen
from qwen_edge.server.model_registry import LoadPackage, ModelRegistry
from qwen_edge.server.settings import DEFAULT_HOST, DEFAULT_PORT, ServerSettings
from qwen_edge.server.sidecar import ReadyFacts, ReadyFile, stop_with_parent, stop_with_stdin

Tell = Callable[[ReadyFacts], None]


@dataclass(frozen=True)
class ServeRequest:
    """What is to be served, where, and to whom.

    Args:
        packages: Folder and manifest of each.
        load: Opens a package.
        settings: How answers are made.
        limits: Of requests.
        host: Address to listen on.
        port: 0 takes a free one.
        key: What requests have to bring, or None.
        allow_hosts: Further names under which the server may be asked.
        allow_origins: Origins whose pages may ask.
        ready_file: Written when the server is ready.
        parent_pid: Stop when this process is gone.
        stops_with_stdin: Stop when standard input ends.
    """

    packages: Sequence[tuple[Path, Manifest]]
    load: LoadPackage
    settings: ServerSettings = field(default_factory=ServerSettings)
    limits: ServerLimits = field(default_factory=ServerLimits)
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    key: AccessKey | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    ready_file: Path | None = None
    parent_pid: int | None = None
    stops_with_stdin: bool = False


def serve(
    request: ServeRequest,
    *,
    on_listening: Tell,
    on_ready: Tell,
) -> None:
    """Serve until a signal, the parent or standard input ends it.

    Args:
        request: What and where.
        on_listening: Told when requests are taken; the model may still be loading.
        on_ready: Told when answers can be given.

    Raises:
        EdgeError: An option cannot be, the address is taken, or the only package cannot be
            loaded.
    """
    registry = ModelRegistry(
        request.packages,
        request.load,
        max_loaded=request.settings.max_loaded,
        unload_after_s=request.settings.unload_after_s,
    )
    ready_file = None if request.ready_file is None else ReadyFile(request.ready_file)
    listener = listen(request.host, request.port, has_key=request.key is not None)
    with contextlib.closing(listener.socket):
        _serve_at(request, registry, ready_file, listener, on_listening, on_ready)


def _serve_at(
    request: ServeRequest,
    registry: ModelRegistry,
    ready_file: ReadyFile | None,
    listener: Listener,
    on_listening: Tell,
    on_ready: Tell,
) -> None:
    """Serve at an address; see `serve`."""
    key = None if request.key is None else request.key.reveal()
    facts = ReadyFacts(listener.url, listener.port, os.getpid(), key)
    guard = guard_settings(
        listener.hosts,
        takes_any_address=listener.is_everywhere,
        key=request.key,
        allow_hosts=request.allow_hosts,
        allow_origins=request.allow_origins,
        limits=request.limits,
    )
    server = Server(
        registry, request.settings, request.limits, loads_first=len(request.packages) == 1
    )
    tasks = set[asyncio.Task[None]]()

    async def tell_when_ready() -> None:
        await server.loaded.wait()
        if server.starting.failure is not None:
            running.stop()
            return
        if ready_file is not None:
            ready_file.write(facts)
        on_ready(facts)

    def start() -> None:
        on_listening(facts)
        tasks.add(asyncio.create_task(tell_when_ready()))

    def end() -> None:
        tasks.add(asyncio.create_task(server.stop()))

    running = EdgeServer(
        HttpGuard(server.make_app(), guard),
        listener,
        request.limits,
        on_started=start,
        on_stopping=end,
        is_process=True,
    )
    if request.parent_pid is not None:
        stop_with_parent(request.parent_pid, running.stop)
    if request.stops_with_stdin:
        stop_with_stdin(running.stop)
    try:
        running.run()
    finally:
        if ready_file is not None:
            ready_file.remove()
    if server.starting.failure is not None:
        raise server.starting.failure
