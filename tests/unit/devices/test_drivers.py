"""Drivers: read from copies of system files and from a registry that is made up."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_edge.runtime.devices import drivers
from qwen_edge.runtime.devices.drivers import Accelerator, find_package_version, probe_linux

INTEL, AMD = "0x8086", "0x1002"
STATUS = """Package: intel-opencl-icd
Status: install ok installed
Architecture: amd64
Version: 1:25.40.35563.7-1~24.04

Package: intel-level-zero-npu
Status: deinstall ok config-files
Version: 1.13.0

Package: libze-intel-npu1
Status: install ok installed
Version: 1.33.0.20260529
"""

AddDevice = Callable[..., None]


@pytest.fixture
def add_device(tmp_path: Path) -> AddDevice:
    """Return a function that adds a PCI device to a made-up root."""
    if os.name == "nt":
        pytest.skip("colons in names, and symlinks")

    def add(
        address: str, kind: str, device: str, vendor: str = INTEL, driver: str = "", node: str = ""
    ) -> None:
        folder = tmp_path / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        for name, text in (("class", kind), ("vendor", vendor), ("device", device)):
            (folder / name).write_text(text + "\n", encoding="ascii")
        if driver:
            (tmp_path / "sys/bus/pci/drivers" / driver).mkdir(parents=True)
            (folder / "driver").symlink_to(tmp_path / "sys/bus/pci/drivers" / driver)
        if node:
            place = tmp_path / "dev" / node
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
            (folder / ("accel" if "accel" in node else "drm") / place.name).mkdir(parents=True)

    return add


def add_status(root: Path) -> None:
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(STATUS, encoding="utf-8")


def test_a_core_ultra_with_everything_installed(tmp_path: Path, add_device: AddDevice) -> None:
    add_device("0000:00:02.0", "0x030000", "0x7d55", driver="xe", node="dri/renderD128")
    add_device("0000:00:0b.0", "0x120000", "0x7d1d", driver="intel_vpu", node="accel/accel0")
    add_device("0000:00:1f.0", "0x060100", "0x7e02")  # a bridge
    add_device("0000:01:00.0", "0x030000", "0x744c", vendor=AMD, driver="amdgpu")
    add_status(tmp_path)
    assert probe_linux(tmp_path) == (
        Accelerator(
            "GPU", "0x7d55", None, "xe", "/dev/dri/renderD128", True, "25.40.35563.7-1~24.04"
        ),
        Accelerator(
            "NPU", "0x7d1d", None, "intel_vpu", "/dev/accel/accel0", True, "1.33.0.20260529"
        ),
    )


def test_a_device_that_may_not_be_opened(
    tmp_path: Path, add_device: AddDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_device("0000:00:02.0", "0x038000", "0x7d55", driver="i915", node="dri/renderD128")
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK)
    [found] = probe_linux(tmp_path) or ()
    assert found.is_accessible is False


def test_a_device_without_driver_or_file(tmp_path: Path, add_device: AddDevice) -> None:
    add_device("0000:00:0b.0", "0x120000", "0xb03e")
    assert probe_linux(tmp_path) == (Accelerator("NPU", "0xb03e"),)


def test_a_container_sees_the_device_but_not_its_file(
    tmp_path: Path, add_device: AddDevice
) -> None:
    add_device("0000:00:02.0", "0x030000", "0x7d55", driver="xe", node="dri/renderD128")
    (tmp_path / "dev/dri/renderD128").unlink()
    [found] = probe_linux(tmp_path) or ()
    assert (found.kernel_driver, found.node, found.is_accessible) == ("xe", None, None)


def test_where_devices_are_not_listed_nothing_is_known(
    tmp_path: Path, add_device: AddDevice
) -> None:
    assert probe_linux(tmp_path) is None
    add_device("0000:00:1f.0", "0x060100", "0x7e02")
    assert probe_linux(tmp_path) == ()
    release = tmp_path / "proc/sys/kernel/osrelease"
    release.parent.mkdir(parents=True)
    release.write_text("6.6.87.2-microsoft-standard-WSL2", encoding="ascii")
    assert probe_linux(tmp_path) is None  # its GPU comes another way


def test_other_distributions_tell_versions_in_names(tmp_path: Path, add_device: AddDevice) -> None:
    folder = tmp_path / "var/lib/pacman/local"
    for name in ("intel-compute-runtime-25.48.36300.8-1", "intel-compute-runtime-tools-1-1"):
        (folder / name).mkdir(parents=True)
    assert find_package_version(tmp_path, ("intel-compute-runtime",)) == "25.48.36300.8-1"
    assert find_package_version(tmp_path, ("intel-compute",)) is None
    library = tmp_path / "usr/lib64/libze_intel_npu.so.1.24.0"
    library.parent.mkdir(parents=True)
    library.touch()
    add_device("0000:00:0b.0", "0x120000", "0x7d1d")
    [found] = probe_linux(tmp_path) or ()
    assert found.driver_version == "1.24.0"


def test_a_package_that_was_removed_is_not_installed(tmp_path: Path) -> None:
    add_status(tmp_path)
    assert find_package_version(tmp_path, ("intel-level-zero-npu",)) is None


class Registry:
    """A module like `winreg` with these keys."""

    HKEY_LOCAL_MACHINE = 0

    def __init__(self, keys: dict[str, dict[str, str]], forbidden: str = "") -> None:
        self.keys = keys
        self.forbidden = forbidden

    def OpenKey(self, hive: int, path: str) -> Any:  # noqa: N802
        name = path.lower().partition("class\\")[2]
        if name == self.forbidden:
            raise PermissionError(path)
        if name not in self.keys:
            raise FileNotFoundError(path)
        values = self.keys[name]
        return type("Key", (), {"__enter__": lambda _: values, "__exit__": lambda *_: None})()

    def QueryValueEx(self, key: dict[str, str], name: str) -> tuple[str, int]:  # noqa: N802
        if name not in key:
            raise FileNotFoundError(name)
        return key[name], 1


def test_windows_tells_devices_and_driver_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    display = "{4d36e968-e325-11ce-bfc1-08002be10318}"
    compute = "{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}"
    registry = Registry(
        {
            rf"{display}\0000": {"MatchingDeviceId": r"ROOT\BasicDisplay"},
            rf"{display}\0002": {
                "MatchingDeviceId": r"PCI\VEN_8086&DEV_7D55&SUBSYS_1",
                "DriverDesc": "Intel(R) Arc(TM) Graphics",
                "DriverVersion": "32.0.101.6790",
            },
            rf"{compute}\0000": {"MatchingDeviceId": r"PCI\VEN_8086&DEV_7D1D"},
        },
        forbidden=rf"{display}\0001",
    )
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr(drivers, "importlib", SimpleNamespace(import_module=lambda _: registry))
    assert drivers.probe_accelerators() == (
        Accelerator("GPU", "0x7d55", "Intel(R) Arc(TM) Graphics", driver_version="32.0.101.6790"),
        Accelerator("NPU", "0x7d1d"),
    )


@pytest.mark.parametrize("system", ["Windows", "Darwin", "Plan9"])
def test_a_system_that_cannot_be_asked_tells_nothing(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    if os.name != "nt":
        assert drivers.probe_accelerators() is None


def test_the_real_machine_answers() -> None:
    found = drivers.probe_accelerators()
    assert found is None or all(entry.kind in ("GPU", "NPU") for entry in found)
