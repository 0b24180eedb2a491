"""`run --explain`: what running a package takes here, told and as JSON; nothing is loaded."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.machine.engine_speed import EngineSpeed
from qwen_edge.runtime.machine.speed import MachineSpeed

HARDWARE = "qwen_edge.runtime.resources.plan.probe_hardware"


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this machine 16 GB and known speeds."""
    where = "qwen_edge.runtime.resources.plan."
    monkeypatch.setattr(f"{where}measure_machine", lambda: MachineSpeed(25e9, 1e9, 68e6))
    engine = EngineSpeed(0.3e9, 300e9, 45e9, 75e9)
    monkeypatch.setattr(f"{where}measure_engine", lambda *args, **kwargs: engine)
    set_memory(monkeypatch, 16_000_000_000)


def set_memory(monkeypatch: pytest.MonkeyPatch, available_bytes: int) -> None:
    hardware = dataclasses.replace(probe_hardware(), available_memory_bytes=available_bytes)
    monkeypatch.setattr(HARDWARE, lambda: hardware)


def test_explain_tells_memory_context_and_time_of_each_device(
    cli: Any, demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.runtime.loading.load", lambda *args, **kwargs: 1 / 0)
    outcome = cli("run", demo_package, "--explain")
    assert (outcome.code, outcome.err) == (0, "")
    assert "\nCPU (OpenVINO)\n  memory   " in outcome.out
    assert "16.0 GB are available" in outcome.out
    assert "tokens fit" in outcome.out and "to start" in outcome.out
    assert outcome.out.endswith("Nothing was loaded.\n")


def test_explain_as_json(cli: Any, demo_package: Path) -> None:
    outcome = cli("run", demo_package, "--explain", "--json", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    assert [entry["device"] for entry in data["devices"]] == ["CPU"]
    entry = data["devices"][0]
    assert entry["context_tokens"] == entry["max_context_tokens"]
    assert entry["time"]["answer_tokens_per_s"] > 0


def test_explain_says_what_has_no_room(
    cli: Any, demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, 1_000_000)
    outcome = cli("run", demo_package, "--explain", "--device", "CPU")
    assert outcome.code == 0
    assert "cannot be used: Running this model on CPU takes about" in outcome.out


@pytest.mark.parametrize("command", ["run", "chat", "batch"])
def test_a_package_without_room_is_refused_before_its_files_are_hashed(
    cli: Any,
    command: str,
    demo_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_memory(monkeypatch, 1_000_000)
    monkeypatch.setattr("qwen_edge.runtime.loading.load", lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr("qwen_edge.runtime.loading.load_batch", lambda *args, **kwargs: 1 / 0)
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi"}\n', encoding="utf-8")
    last = {"run": ("Hi",), "chat": (), "batch": (tmp_path / "p.jsonl",)}[command]
    outcome = cli(command, demo_package, *last, stdin="Hi\n")
    assert (outcome.code, outcome.out) == (8, "")
    assert "of memory (model" in outcome.err and "1.0 MB are available" in outcome.err
