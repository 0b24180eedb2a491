"""`qwen-edge doctor`: findings, JSON, and the exit code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli import doctor_command
from qwen_edge.errors import DeviceError
from qwen_edge.profiles.hardware import Hardware, probe_hardware
from qwen_edge.profiles.providers import NOT_HERE, load_providers
from qwen_edge.runtime.devices import DeviceReport
from qwen_edge.runtime.providers import ProviderReport

GOOD = {
    "openvino": "2026.4.1",
    "openvino-tokenizers": "2026.4.1.0",
    "onnxruntime": "1.31.1",
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
        put_providers(monkeypatch, {"CPUExecutionProvider": None})

    return make


def put_providers(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None]) -> None:
    """Let ONNX Runtime have the providers given with None, and not the others, with reasons."""
    reports = tuple(
        ProviderReport(entry.name, entry.device, reasons.get(entry.name, NOT_HERE))
        for entry in load_providers()
    )
    monkeypatch.setattr("qwen_edge.runtime.providers.probe_providers", lambda: reports)


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
    assert "pip install qwen-edge" in found["fix"]


def findings(cli: Any) -> list[str]:
    """Return what was found, each with its level in front."""
    data = json.loads(cli("doctor", "--json").out)
    return [f"{entry['level']}: {entry['what']}" for entry in data["findings"]]


def test_openvino_may_be_missing_where_onnx_runtime_is_there(cli: Any, machine: Any) -> None:
    """It has no build for Windows on ARM; asking it for devices would say so three times."""
    machine({"onnxruntime": "1.31.1"})
    assert problems(cli) == []
    found = findings(cli)
    assert "note: openvino is not installed; packages run by their ONNX model only" in found
    assert not [line for line in found if "GPU: no driver" in line]


def test_onnx_runtime_may_be_missing(cli: Any, machine: Any) -> None:
    machine({name: version for name, version in GOOD.items() if name != "onnxruntime"})
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "note     onnxruntime is not installed; only packages with an ONNX" in outcome.out
    assert "Fix: pip install 'qwen-edge[onnx]'" in outcome.out


def test_providers_are_told_with_what_auto_takes(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr("platform.system", lambda: "Windows")
    put_providers(
        monkeypatch,
        {
            "CPUExecutionProvider": None,
            "DmlExecutionProvider": None,
            "QNNExecutionProvider": "it is installed, and finds no NPU here",
            "CoreMLExecutionProvider": "there is none for Windows",
        },
    )
    found = "\n".join(findings(cli))
    assert "ok: onnxruntime 1.31.1: --device auto takes CPU by CPUExecutionProvider" in found
    assert "note: DmlExecutionProvider (GPU): here, and refused; its attention" in found
    assert "note: QNNExecutionProvider (NPU): it is installed, and finds no NPU here" in found
    assert "could be added, for --device: WebGpuExecutionProvider (GPU: pip install" in found
    assert "CoreML" not in found


def test_an_onnx_runtime_that_cannot_be_loaded_is_a_problem(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    reason = "ONNX Runtime could not be imported: no libgomp."
    put_providers(monkeypatch, {entry.name: reason for entry in load_providers()})
    [found] = problems(cli)
    assert found["what"] == "ONNX Runtime could not be imported: no libgomp"
    assert found["fix"] == "pip install --force-reinstall onnxruntime"


def test_an_onnx_runtime_without_the_cpu_is_a_problem_and_no_crash(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    put_providers(monkeypatch, {"DmlExecutionProvider": None})
    [found] = problems(cli)
    assert "CPUExecutionProvider" in found["what"]


def test_two_onnx_runtimes_are_a_problem(cli: Any, machine: Any) -> None:
    machine(GOOD | {"onnxruntime-directml": "1.24.4"})
    [found] = problems(cli)
    assert "onnxruntime 1.31.1 and onnxruntime-directml 1.24.4 bring the same" in found["what"]
    assert found["fix"].startswith("pip uninstall -y onnxruntime onnxruntime-directml")


@pytest.mark.parametrize(
    ("version", "is_old"), [("1.29.1", True), ("1.30.0", False), ("2.0", False), ("1.9", True)]
)
def test_an_onnx_runtime_older_than_tested_is_a_note(
    cli: Any, machine: Any, version: str, is_old: bool
) -> None:
    machine(GOOD | {"onnxruntime": version})
    assert problems(cli) == []
    line = f"note: onnxruntime {version} is older than 1.30, the oldest that was tested"
    assert (line in findings(cli)) is is_old


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


def test_a_broken_openvino_is_one_problem_with_a_fix(
    cli: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a first user: it was three notes about drivers."""
    machine()

    def fail() -> None:
        raise DeviceError("OpenVINO could not be imported: no such library.", "pip install it")

    monkeypatch.setattr("qwen_edge.runtime.engine.import_openvino", fail)
    [found] = problems(cli)
    assert found["what"] == "OpenVINO could not be imported: no such library"
    assert found["fix"] == "pip install it"
    assert not [line for line in findings(cli) if "driver" in line]
