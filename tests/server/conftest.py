"""Fixtures of the server's tests: a real server around a tiny application, and raw sockets."""

import http.client
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TINY_APP = Path(__file__).with_name("tiny_app.py")


@dataclass(frozen=True)
class Reply:
    """An answer as it came over the wire."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def code(self) -> str | None:
        """The code of its error."""
        error: str | None = json.loads(self.body)["error"]["code"]
        return error


class KeptReader(io.BufferedReader):
    """What was read ahead of one answer belongs to the next, so it is not closed between."""

    def makefile(self, *_: object) -> "KeptReader":
        return self

    def close(self) -> None:
        return


class Wire:
    """A socket that sends bytes as they are, and reads answers."""

    def __init__(self, port: int, host: str = "127.0.0.1", receive_buffer: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5)
        self.socket.connect((host, port))
        self._reader: Any = KeptReader(socket.SocketIO(self.socket, "r"))

    def send(self, *parts: bytes) -> "Wire":
        for part in parts:
            self.socket.sendall(part)
        return self

    def read(self, method: str = "GET") -> Reply:
        """Read one answer; the connection stays as it is."""
        response = http.client.HTTPResponse(self._reader, method=method)
        response.begin()
        reply = Reply(response.status, response.headers, response.read())
        response.close()
        return reply

    def is_closed(self, within_s: float = 2.0) -> bool:
        """Return whether the other side closes without sending more than it has."""
        deadline = time.monotonic() + within_s
        self.socket.settimeout(within_s)
        try:
            while time.monotonic() < deadline:
                if not self.socket.recv(65_536):
                    return True
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return False

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(scope="session")
def tiny_app() -> Any:
    """Return the module of the tiny application."""
    spec = importlib.util.spec_from_file_location("tiny_app", TINY_APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_app"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shared_server(tiny_app: Any) -> Iterator[Any]:
    """Return a server with the default limits, for attacks that leave nothing behind."""
    server = tiny_app.ServerInThread()
    yield server
    server.stop()


@pytest.fixture
def start_server(tiny_app: Any) -> Iterator[Callable[..., Any]]:
    """Return a starter of servers with other limits, keys and settings."""
    servers: list[Any] = []

    def start(**options: Any) -> Any:
        servers.append(tiny_app.ServerInThread(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def start_process() -> Iterator[Callable[..., tuple["subprocess.Popen[str]", int]]]:
    """Return a starter of the tiny application as a process: the process and its port."""
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str) -> tuple["subprocess.Popen[str]", int]:
        roots = os.pathsep.join(str(ROOT / top) for top in ("runtime", "profiles"))
        process = subprocess.Popen(
            [sys.executable, str(TINY_APP), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": roots},
        )
        processes.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def connect() -> Iterator[Callable[..., Wire]]:
    """Return a maker of raw connections; all are closed afterwards."""
    wires: list[Wire] = []

    def make(server: Any, **options: Any) -> Wire:
        wires.append(Wire(getattr(server, "port", server), **options))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Return a function that waits until something holds."""

    def wait(holds: Callable[[], bool], within_s: float = 10.0) -> None:
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, "it did not come to hold in time"
            time.sleep(0.01)

    return wait
