"""Fixtures of the command line's tests: the program in this process, and as a process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen_edge.cli.main import run
from qwen_edge.runtime.batch_model import BatchModel
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE
from qwen_edge.runtime.model import Model

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What one command line came to."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class FakePackage:
    """A folder whose manifest is real and whose model is a script; how it was loaded, each time."""

    folder: str
    models: list[Model | BatchModel]
    options: list[dict[str, object]]


Cli = Callable[..., Outcome]
Program = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def cli() -> Cli:
    """Return a function that runs a command line in this process; `stdin` is bytes or text."""

    def call(*arguments: str | Path, stdin: str | bytes = b"") -> Outcome:
        with CliRunner().isolation(input=stdin) as (out, err, _):
            code = run([str(argument) for argument in arguments])
            return Outcome(code, out.getvalue().decode(), err.getvalue().decode())

    return call


@pytest.fixture
def fake_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., FakePackage]:
    """Return a function that makes a package whose model gives these answers."""
    folder = tmp_path / "fake package ü"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "data" / "manifest.json", folder / "manifest.json")

    def make(*answers: str, max_context_tokens: int = 4096) -> FakePackage:
        package = FakePackage(str(folder), [], [])

        def load(path: Path, **options: object) -> Model:
            del path
            model = Model.fake(answers, max_context_tokens=max_context_tokens)
            package.models.append(model)
            package.options.append(options)
            return model

        def load_batch(
            path: Path, *, options: BatchOptions | None = None, **others: object
        ) -> BatchModel:
            del path
            single = Model.fake(answers, max_context_tokens=max_context_tokens)
            model = BatchModel(
                SequentialBatchBackend(single.backend),
                single.tokenizer,
                CHAT_TEMPLATE,
                single.manifest,
                options=options,
            )
            package.models.append(model)
            package.options.append({"options": options, **others})
            return model

        monkeypatch.setattr("qwen_edge.runtime.loading.load", load)
        monkeypatch.setattr("qwen_edge.runtime.loading.load_batch", load_batch)
        return package

    return make


@pytest.fixture
def program_environment() -> dict[str, str]:
    """Return the environment of a process that runs the program from its sources."""
    roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    return {**os.environ, "PYTHONPATH": roots, "PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def program(program_environment: dict[str, str], tmp_path: Path) -> Program:
    """Return a function that runs a command line as a process of its own."""

    def call(
        *arguments: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        command: Sequence[str] = [sys.executable, "-m", "qwen_edge.cli", *map(str, arguments)]
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            timeout=60,
            cwd=tmp_path,
            env={**program_environment, **(env or {})},
        )

    return call
