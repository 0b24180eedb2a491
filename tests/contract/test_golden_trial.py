"""Golden tokens in child processes: each end of a child means something, and real ones agree."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.profiles.providers import NOT_HERE, load_providers
from qwen_edge.runtime.devices import golden_trial
from qwen_edge.runtime.devices.compile_trial import make_record
from qwen_edge.runtime.devices.golden_trial import TrialTarget, list_targets, run_target
from qwen_edge.runtime.devices.probing import DeviceReport
from qwen_edge.runtime.devices.providers import ProviderReport
from qwen_edge.runtime.devices.trial_process import (
    EXIT_MISSING,
    EXIT_NO_MEMORY,
    EXIT_REFUSED,
    EXIT_WRONG_ANSWER,
    KILLED,
    ChildEnd,
)
from qwen_edge.runtime.manifest import DeviceSettings, Manifest
from qwen_edge.runtime.package import read_manifest, write_manifest
from qwen_edge.runtime.records import write_record
from qwen_edge.runtime.schema import to_json

CPU = DeviceReport("CPU", "A CPU")
ABSENT = (DeviceReport("GPU", "", "no driver."), DeviceReport("NPU", "", "none."))
CPU_PROVIDER = "CPUExecutionProvider"


def providers(*available: str) -> tuple[ProviderReport, ...]:
    """Return an ONNX Runtime that has these."""
    return tuple(
        ProviderReport(entry.name, entry.device, None if entry.name in available else NOT_HERE)
        for entry in load_providers()
    )


def settings_of(folder: Path, device: str) -> DeviceSettings:
    """Return what a package has for a device."""
    return next(entry for entry in read_manifest(folder).devices if entry.device == device)


@pytest.fixture
def end_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that lets every child end like this; gives what each was told."""

    def make(returncode: int | None, last_line: str = "") -> list[Any]:
        told: list[Any] = []

        def run_trial(module: str, arguments: list[str], *, time_limit_s: float) -> ChildEnd:
            assert module == "qwen_edge.runtime.devices.golden_trial"
            told.append(json.loads(arguments[0]))
            return ChildEnd(returncode, last_line, time_limit_s)

        monkeypatch.setattr(golden_trial, "run_trial", run_trial)
        return told

    return make


# --- Which ways there are -----------------------------------------------------------------------


def test_every_device_of_a_package_is_a_way_and_absent_ones_say_why(demo_package: Path) -> None:
    manifest = read_manifest(demo_package)
    targets = list_targets(demo_package, manifest, (CPU, *ABSENT), ())
    ways = [(target.device, target.way, target.why_not) for target in targets]
    reasons = {"CPU": None, "GPU": "no driver.", "NPU": "none."}
    listed = [(e.device, "device", reasons[e.device]) for e in manifest.devices]
    assert ways == [("CPU", "sealed", None), *listed]
    settings = {target.device: target.settings for target in targets if target.way == "device"}
    assert settings == {entry.device: entry for entry in manifest.devices}


def test_a_device_that_is_here_and_not_in_the_package_is_told(demo_package: Path) -> None:
    manifest = read_manifest(demo_package)
    only_cpu = dataclasses.replace(manifest, devices=(settings_of(demo_package, "CPU"),))
    npu = DeviceReport("NPU", "An NPU")
    [told] = [
        target
        for target in list_targets(demo_package, only_cpu, (CPU, ABSENT[0], npu), ())
        if target.device in ("GPU", "NPU")
    ]
    assert told.device == "NPU"
    assert "no settings for it" in (told.why_not or "")


def with_onnx(manifest: Manifest) -> Manifest:
    """Return a manifest that says that there is an ONNX model, too."""
    files = {**manifest.files, "model.onnx": manifest.files["config.json"]}
    return dataclasses.replace(manifest, files=files)


def test_providers_that_are_here_are_ways(demo_package: Path) -> None:
    manifest = with_onnx(read_manifest(demo_package))
    found = list_targets(demo_package, manifest, (CPU, *ABSENT), providers(CPU_PROVIDER))
    onnx = [(t.device, t.way, t.why_not) for t in found if t.format == "onnx"]
    assert onnx == [("CPU", "sealed", None), (CPU_PROVIDER, "device", None)]
    found = list_targets(demo_package, manifest, (CPU, *ABSENT), providers())
    onnx = [(t.device, t.way, t.why_not) for t in found if t.format == "onnx"]
    assert onnx == [("CPU", "sealed", NOT_HERE), (CPU_PROVIDER, "device", NOT_HERE)]


def test_a_provider_that_is_never_taken_is_not_tried(demo_package: Path) -> None:
    manifest = with_onnx(read_manifest(demo_package))
    found = list_targets(demo_package, manifest, (CPU,), providers("DmlExecutionProvider"))
    [dml] = [target for target in found if target.device == "DmlExecutionProvider"]
    assert dml.why_not


# --- What an end means --------------------------------------------------------------------------

TARGET = TrialTarget("openvino", "CPU", "sealed")


@pytest.mark.parametrize(
    ("returncode", "line", "verdict", "detail"),
    [
        (0, '{"answer_s": 0.5}', "right", ""),
        (0, "an engine had the last word", "right", ""),
        (EXIT_WRONG_ANSWER, '{"answer_s": 0.5, "problem": "token 1 is 2"}', "wrong", "token 1"),
        (EXIT_WRONG_ANSWER, "The logits are not finite", "wrong", "not finite"),
        (EXIT_REFUSED, "Device 'GPU' refused", "refused", "Device 'GPU' refused"),
        (EXIT_MISSING, "OpenVINO is not installed", "not run", "is not installed"),
        (EXIT_NO_MEMORY, "Memory ran out", "not run", "Memory ran out"),
        (-11, "last words", "crashed", "it was ended by signal 11 (SIGSEGV): last words"),
        (KILLED, "", "crashed", "as when memory runs out"),
        (0xC0000005, "", "crashed", "0xC0000005"),
        (1, "TypeError", "crashed", "it ended with code 1: TypeError"),
        (None, "", "hung", "not done after 7 s"),
    ],
)
def test_ends(
    end_as: Any, tmp_path: Path, returncode: int | None, line: str, verdict: str, detail: str
) -> None:
    end_as(returncode, line)
    result = run_target(tmp_path, TARGET, time_limit_s=7)
    assert result.verdict == verdict
    assert detail in result.detail
    assert result.is_fault is (verdict in ("wrong", "refused", "crashed", "hung"))
    assert result.answer_s == (0.5 if "0.5" in line else None)


def test_where_no_child_can_be_started_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(golden_trial, "run_trial", lambda *_, **__: None)
    assert run_target(tmp_path, TARGET, time_limit_s=1).verdict == "not run"


def test_a_device_that_is_absent_starts_no_child(end_as: Any, tmp_path: Path) -> None:
    told = end_as(0)
    result = run_target(tmp_path, dataclasses.replace(TARGET, why_not="none."), time_limit_s=1)
    assert (result.verdict, result.detail, told) == ("not run", "none", [])


def test_a_child_is_told_settings_and_cache_folder(end_as: Any, demo_package: Path) -> None:
    told = end_as(0)
    entry = settings_of(demo_package, "CPU")
    target = TrialTarget("openvino", "CPU", "device", settings=entry)
    run_target(demo_package, target, time_limit_s=1)
    assert told[0]["settings"]["properties"] == dict(entry.properties)
    assert told[0]["cache_dir"] == os.environ["QWEN_EDGE_CACHE_DIR"]


def test_a_wrong_cache_variable_ends_nothing(
    end_as: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_EDGE_CACHE_DIR", "not/absolute")
    told = end_as(0)
    run_target(tmp_path, TARGET, time_limit_s=1)
    assert told[0]["cache_dir"] is None


def test_what_an_earlier_start_found_is_added(
    end_as: Any, demo_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("qwen_edge.runtime.records._YOUNG_FILE_S", -1e9)
    end_as(0)
    npu = settings_of(demo_package, "NPU")
    target = TrialTarget("openvino", "NPU", "device", settings=npu)
    assert run_target(demo_package, target, time_limit_s=1).remembered is None
    record = make_record(demo_package, npu)
    write_record(record, tmp_path / "cache", {"problem": "It hung."})
    result = run_target(demo_package, target, time_limit_s=1)
    assert (result.verdict, result.remembered) == ("right", "It hung.")
    assert result.record is not None and result.record.is_file()


# --- Real ones ----------------------------------------------------------------------------------


def test_the_demo_answers_rightly_with_the_settings_that_run_takes(demo_package: Path) -> None:
    manifest = read_manifest(demo_package)
    [target] = [
        entry
        for entry in list_targets(demo_package, manifest, (CPU, *ABSENT), ())
        if (entry.device, entry.way) == ("CPU", "device")
    ]
    result = run_target(demo_package, target, time_limit_s=60)
    assert (result.verdict, result.detail) == ("right", "")
    assert result.load_s is not None and result.answer_s is not None


@pytest.fixture
def be_child(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[int, str]]:
    """Return a function that does a child's work in this process: exit code and last line."""
    monkeypatch.setattr(golden_trial, "be_expendable", lambda: None)
    monkeypatch.setenv("QWEN_EDGE_CACHE_DIR", os.environ["QWEN_EDGE_CACHE_DIR"])

    def call(folder: Path, **changes: Any) -> tuple[int, str]:
        task = {"folder": str(folder), "format": "openvino", "device": "CPU", "way": "sealed"}
        code = golden_trial.main([json.dumps({**task, **changes})])
        return code, caplog.records[-1].getMessage()

    return call


def test_another_answer_than_the_sealed_one_is_told(
    be_child: Any, demo_package: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(demo_package, folder)
    manifest = read_manifest(folder)
    tokens = list(manifest.golden.token_ids)
    tokens[1] = (tokens[1] + 1) % manifest.model.vocab_size
    golden = dataclasses.replace(manifest.golden, token_ids=tuple(tokens))
    write_manifest(folder, dataclasses.replace(manifest, golden=golden))
    code, line = be_child(folder)
    assert code == EXIT_WRONG_ANSWER
    assert json.loads(line)["problem"].startswith(f"token 2 of {len(tokens)} is ")


def test_a_property_that_a_device_refuses_is_told(be_child: Any, demo_package: Path) -> None:
    entry = settings_of(demo_package, "CPU")
    settings = to_json(dataclasses.replace(entry, properties={"NO_SUCH": "1"}))
    code, line = be_child(demo_package, way="device", settings=settings)
    assert code == EXIT_REFUSED
    assert "NO_SUCH" in line


def test_too_little_memory_is_told_before_anything_is_compiled(
    be_child: Any, demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = golden_trial.probe_hardware()
    little = dataclasses.replace(probe, available_memory_bytes=1000)
    monkeypatch.setattr(golden_trial, "probe_hardware", lambda: little)
    settings = to_json(settings_of(demo_package, "CPU"))
    code, line = be_child(demo_package, way="device", settings=settings)
    assert code == EXIT_NO_MEMORY
    assert "1.0 kB are available" in line
