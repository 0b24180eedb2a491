"""Real servers for the tests of the interface: the demo model as a process, scripted ones here."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.runtime.backends.backend import Logits
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.batch_model import BatchModel
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE, make_fake_tokenizer, make_script
from qwen_edge.runtime.model import Model
from qwen_edge.server.app import Server
from qwen_edge.server.http_guard import HttpGuard, guard_settings
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.listening import EdgeServer, listen
from qwen_edge.server.model_registry import ModelRegistry
from qwen_edge.server.settings import ServerSettings

TOKENIZER = make_fake_tokenizer()


class PacedBackend(FakeBackend):
    """A scripted backend that takes its time, and waits while the gate is closed."""

    pace_s = 0.0

    def __init__(self, *args: Any, gate: threading.Event, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gate = gate

    def forward(self, token_ids: Sequence[int]) -> Logits:
        self._gate.wait(20)
        if self.pace_s:
            time.sleep(self.pace_s)
        return super().forward(token_ids)


class ScriptedServer:
    """A server in a thread whose model gives scripted answers.

    State:
        Clear `gate` to hold the model in the middle of a step; `pace_s` slows each step. With
        `holds_load` nothing is loaded until `may_load` is set.
    """

    def __init__(
        self,
        answers: Sequence[str] = ("Hello.",),
        *,
        names: Sequence[str] = ("scripted",),
        loads_first: bool = True,
        holds_load: bool = False,
        pace_s: float = 0.0,
        load_error: Exception | None = None,
        **settings: Any,
    ) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.may_load = threading.Event()
        if not holds_load:
            self.may_load.set()
        self.models: list[BatchModel] = []
        self.loads: list[str] = []
        self.settings = ServerSettings(**settings)

        def load(folder: Path) -> BatchModel:
            self.loads.append(folder.name)
            self.may_load.wait(20)
            if load_error is not None:
                raise load_error
            backend = PacedBackend(
                make_script(TOKENIZER, answers), vocab_size=TOKENIZER.vocab_size, gate=self.gate
            )
            backend.pace_s = pace_s
            model = BatchModel(
                SequentialBatchBackend(backend, max_sequences=self.settings.parallel),
                TOKENIZER,
                CHAT_TEMPLATE,
                Model.fake(answers).manifest,
                options=BatchOptions(max_running=self.settings.parallel, max_waiting=1000),
            )
            self.models.append(model)
            return model

        card: Any = Model.fake(answers).manifest
        packages = [(Path(name), _Manifest(name, card)) for name in names]
        listener = listen(port=0, has_key=False)
        self.port, self.url = listener.port, listener.url
        started = threading.Event()

        def run() -> None:
            registry = ModelRegistry(
                packages,  # type: ignore[arg-type]
                load,
                max_loaded=self.settings.max_loaded,
                unload_after_s=self.settings.unload_after_s,
            )
            self.server = Server(registry, self.settings, ServerLimits(), loads_first=loads_first)
            guard = guard_settings(listener.hosts)
            tasks: list[asyncio.Task[None]] = []
            self._running = EdgeServer(
                HttpGuard(self.server.make_app(), guard),
                listener,
                on_started=started.set,
                on_stopping=lambda: tasks.append(asyncio.create_task(self.server.stop())),
            )
            self._running.run()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert started.wait(10)
        while loads_first and not holds_load and self.server.starting.is_loading:
            time.sleep(0.01)

    @property
    def num_running(self) -> int:
        """Answers in the making."""
        return sum(model.statistics().num_running for model in self.models)

    @property
    def num_wanted(self) -> int:
        """Answers that hold a place."""
        return self.server.admission.num_taken

    def stop(self) -> None:
        self.gate.set()
        self.may_load.set()
        self._running.stop()
        self._thread.join(15)
        assert not self._thread.is_alive()


class _Manifest:
    """The part of a manifest that a registry and `/v1/models` read."""

    devices = ()

    def __init__(self, name: str, card: Any) -> None:
        self.name = name
        self.chat = card.chat
        self.model = type("ModelFacts", (), {"max_context_tokens": 4096})


@pytest.fixture
def start_scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Return a starter of scripted servers."""
    servers: list[ScriptedServer] = []

    def start(*args: Any, **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def start_serve() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Return a starter of `qwen-edge serve` as a process of its own."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "qwen_edge.cli", "serve", *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        processes.append(subprocess.Popen(command, env=paths, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def served(
    start_serve: Callable[..., "subprocess.Popen[bytes]"],
    demo_package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Return the address of a server with the demo model."""
    ready = tmp_path_factory.mktemp("ready") / "ready.json"
    start_serve(
        demo_package, "--port", 0, "--ready-file", ready, "--metrics", stdout=None, stderr=None
    )
    deadline = time.monotonic() + 60
    while not ready.is_file():
        assert time.monotonic() < deadline, "the server did not become ready"
        time.sleep(0.05)
    url: str = json.loads(ready.read_bytes())["url"]
    return url
