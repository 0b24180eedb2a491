"""`qwen-edge doctor`: findings, JSON, and the exit code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli import doctor_command
from qwen_edge.profiles.hardware import Hardware, probe_hardware
from qwen_edge.runtime.devices import DeviceReport

GOOD = {
    "openvino": "2026.4.1",
    "openvino-tokenizers": "2026.4.1.0",
    "torch": "2.13.0+cpu",
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes up a machine; without arguments all is well."""

    def make(versions: dict[str, str] = GOOD, **hardware: Any) -> None:
        facts: Hardware = replace(
            probe_hardware(),
            **{
                "isa_features": ("avx2",),
                "memory_bytes": 32_000_000_000,
                "available_memory_bytes": 20_000_000_000,
                **hardware,
            },
        )
        monkeypatch.setattr(doctor_command, "probe_hardware", lambda: facts)
        monkeypatch.setattr(doctor_command, "_versions", lambda: versions)
        monkeypatch.setattr(
            "qwen_edge.runtime.devices.probe_devices",
            lambda: (
                DeviceReport("CPU", "A CPU"),
                DeviceReport("GPU", "", "no driver"),
                DeviceReport("NPU", "", "no such thing"),
            ),
        )

    return make


def problems(cli: Any) -> list[dict[str, str]]:
    """Return what the JSON says is wrong; check that the exit code says the same."""
    outcome = cli("doctor", "--json")
    data = json.loads(outcome.out)
    found = [entry for entry in data["findings"] if entry["level"] == "problem"]
    assert outcome.code == (1 if found else 0)
    assert outcome.err == ""
    return found


def test_a_good_machine_has_no_problem(cli: Any, machine: Any) -> None:
    machine()
    assert problems(cli) == []


def test_the_text_names_devices_with_reasons_and_fixes(cli: Any, machine: Any) -> None:
    machine()
    outcome = cli("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert "ok       CPU: A CPU" in outcome.out
    assert "note     GPU: no driver; profile core-ultra-gpu cannot run here" in outcome.out
    assert "Fix: with a Core Ultra: install the NPU driver" in outcome.out
    assert "profile  " in outcome.out


@pytest.mark.parametrize(
    ("torch", "vision", "is_bad"),
    [
        ("2.13.0+cpu", "0.28.0", True),
        ("2.13.0", "0.28.0+cpu", True),
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0", "0.28.0", False),
    ],
)
def test_torchvision_of_another_build_is_a_problem(
    cli: Any, machine: Any, torch: str, vision: str, is_bad: bool
) -> None:
    machine(GOOD | {"torch": torch, "torchvision": vision})
    found = problems(cli)
    assert [entry["fix"] for entry in found] == (["pip uninstall -y torchvision"] if is_bad else [])


@pytest.mark.parametrize("converter", ["2026.4.0.0", "2026.4.10.0", "2026.5.0.0"])
def test_differing_openvino_packages_are_a_problem(cli: Any, machine: Any, converter: str) -> None:
    machine(GOOD | {"openvino-tokenizers": converter})
    [found] = problems(cli)
    assert converter in found["what"]
    assert found["fix"] == "pip install openvino==2026.4.1 openvino-tokenizers==2026.4.1.0"


def test_a_missing_engine_is_a_problem(cli: Any, machine: Any) -> None:
    machine({})
    [found] = problems(cli)
    assert found["what"] == "openvino is not installed"


def test_no_avx2_is_a_problem(cli: Any, machine: Any) -> None:
    machine(isa_features=(), architecture="x86_64")
    [found] = problems(cli)
    assert "AVX2" in found["what"]


@pytest.mark.parametrize(
    ("total", "available", "level"),
    [(2e9, 1e9, "problem"), (16e9, 1e9, "note"), (None, None, "note"), (32e9, 20e9, "ok")],
)
def test_memory(
    cli: Any, machine: Any, total: float | None, available: float | None, level: str
) -> None:
    machine(memory_bytes=total, available_memory_bytes=available)
    findings = json.loads(cli("doctor", "--json").out)["findings"]
    [found] = [entry for entry in findings if "memory" in entry["what"]]
    assert found["level"] == level


def test_a_bad_cache_variable_is_a_problem(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setenv("QWEN_EDGE_CACHE_DIR", "not/absolute")
    [found] = problems(cli)
    assert "QWEN_EDGE_CACHE_DIR is 'not/absolute'" in found["what"]


def test_a_light_installation_is_a_note(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr(doctor_command, "missing_export_modules", lambda: ("transformers",))
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "note     exporting is not installed (transformers missing)" in outcome.out
    assert "Fix: pip install 'qwen-edge[export]'" in outcome.out


def test_nothing_is_written(cli: Any, machine: Any, tmp_path: Path, monkeypatch: Any) -> None:
    machine()
    monkeypatch.chdir(tmp_path)
    cli("doctor")
    assert list(tmp_path.iterdir()) == []


def test_the_real_machine(program: Any) -> None:
    done = program("doctor", "--json")
    data = json.loads(done.stdout)
    found = [entry for entry in data["findings"] if entry["level"] == "problem"]
    assert done.returncode == (1 if found else 0)
    assert data["hardware"]["num_logical_cores"] >= 1
