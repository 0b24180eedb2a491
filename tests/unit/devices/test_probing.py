"""The device probe: a report for every kind of device, whatever the engine does."""

from types import SimpleNamespace

import pytest

from qwen_edge.errors import DeviceError
from qwen_edge.runtime.devices import probing as devices
from qwen_edge.runtime.devices.probing import KNOWN_DEVICES, DeviceReport, probe_devices


class FakeCore:
    """Two GPUs of which one does not tell its name, and an NPU without its driver."""

    available_devices = ("CPU", "GPU.0", "GPU.1")

    def get_property(self, device: str, name: str) -> object:
        if name == "AVAILABLE_DEVICES" or device == "GPU.1":
            raise RuntimeError("Exception from src/x.cpp:1:\nlibze_loader.so.1 is missing\n")
        return f"Some {device} "


def with_core(monkeypatch: pytest.MonkeyPatch, core: object) -> None:
    module = SimpleNamespace(Core=lambda: core)
    monkeypatch.setattr(devices, "import_openvino", lambda: module)


def test_seen_devices_come_first_and_absent_kinds_have_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_core(monkeypatch, FakeCore())
    assert probe_devices() == (
        DeviceReport("CPU", "Some CPU"),
        DeviceReport("GPU.0", "Some GPU.0"),
        DeviceReport("GPU.1", ""),
        DeviceReport("NPU", "", "libze_loader.so.1 is missing"),
    )
    assert [report.is_available for report in probe_devices()] == [True, True, True, False]


@pytest.mark.trust("T-DEV-02")
def test_plugin_that_answers_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    core = SimpleNamespace(available_devices=(), get_property=lambda *_: [])
    with_core(monkeypatch, core)
    reports = probe_devices()
    assert [report.name for report in reports] == list(KNOWN_DEVICES)
    assert "there is none, or its driver is not installed" in str(reports[2].reason)


def test_engine_that_cannot_be_imported_is_every_device_s_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise DeviceError("OpenVINO could not be imported: no libtbb.")

    monkeypatch.setattr(devices, "import_openvino", refuse)
    assert {report.reason for report in probe_devices()} == {
        "OpenVINO could not be imported: no libtbb."
    }


@pytest.mark.trust("T-DEV-02")
def test_real_probe_finds_the_cpu_and_reports_each_kind() -> None:
    reports = probe_devices()
    assert reports[0].name == "CPU"
    assert reports[0].is_available
    assert {report.name.partition(".")[0] for report in reports} == set(KNOWN_DEVICES)
