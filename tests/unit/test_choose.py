"""A choice is a value with its reason; an explicit request never falls back."""

from dataclasses import dataclass

import pytest

from qwen_edge.errors import DeviceError, UsageError
from qwen_edge.profiles import choose_device, choose_profile, load_profile, profile_names
from qwen_edge.profiles.hardware import Hardware

DEVICES = load_profile("core-ultra").devices


@dataclass(frozen=True)
class Entry:
    """A manifest's entry: all that the choice looks at."""

    device: str


def machine(cpu_name: str | None, architecture: str = "x86_64") -> Hardware:
    return Hardware("Linux", architecture, cpu_name, 4, 8, (), 16_000_000_000, 8_000_000_000)


@pytest.mark.parametrize(
    ("cpu_name", "architecture", "expected"),
    [
        ("Intel(R) Core(TM) Ultra 7 155H", "x86_64", "core-ultra"),
        ("Intel(R) Core(TM) Ultra X7 358H", "AMD64", "core-ultra"),
        ("12th Gen Intel(R) Core(TM) i7-1260P", "x86_64", "generic-x86"),
        ("AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "AMD64", "generic-x86"),
        ("Intel(R) Xeon(R) Processor", "x86_64", "generic-x86"),
        (None, "x86_64", "generic-x86"),
        ("Apple M3", "arm64", "generic-onnx"),
        ("Snapdragon(R) X Elite", "ARM64", "generic-onnx"),
    ],
)
def test_the_profile_follows_the_cpu(
    cpu_name: str | None, architecture: str, expected: str
) -> None:
    choice = choose_profile(machine(cpu_name, architecture))
    assert choice.value == expected
    assert choice.value in profile_names()
    assert (cpu_name or "a CPU without a name") in choice.reason


def test_a_processor_that_openvino_is_not_made_for_is_told_so() -> None:
    assert "ONNX Runtime is made for it" in choose_profile(machine("Apple M3", "arm64")).reason


def test_auto_takes_the_first_that_is_there() -> None:
    choice = choose_device(DEVICES, ("CPU", "GPU.0", "NPU"))
    assert choice.value.device == "GPU"
    assert choice.reason == "GPU, the first in order of preference"


def test_auto_says_what_it_skipped_and_why() -> None:
    choice = choose_device(DEVICES, ("CPU",), unusable={"GPU": "no OpenCL driver."})
    assert choice.value.device == "CPU"
    assert choice.reason == "CPU, the first that can be used; skipped GPU: no OpenCL driver"
    choice = choose_device(DEVICES, ("CPU",))
    assert choice.reason.endswith("skipped GPU: not found, OpenVINO sees CPU")


def test_a_device_that_is_present_but_refused_is_skipped() -> None:
    choice = choose_device(DEVICES, ("CPU", "GPU"), unusable={"GPU": "out of memory"})
    assert choice.value.device == "CPU"


def test_auto_with_nothing_usable_lists_every_reason() -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device(DEVICES, (), unusable={"CPU": "plugin not found"})
    assert "GPU: not found, OpenVINO sees no device" in caught.value.problem
    assert "CPU: plugin not found" in caught.value.problem


def test_auto_without_entries_is_an_error() -> None:
    with pytest.raises(DeviceError, match="the list of devices is empty"):
        choose_device((), ("CPU",))


@pytest.mark.parametrize("requested", ["NPU", "npu"])
def test_an_explicit_request_is_taken_whatever_the_order(requested: str) -> None:
    choice = choose_device(DEVICES, ("CPU", "GPU", "NPU"), requested)
    assert choice.value.device == "NPU"
    assert choice.reason == "NPU, because it was asked for"


def test_an_explicit_request_never_falls_back() -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device(DEVICES, ("CPU", "GPU.0"), "NPU")
    assert caught.value.problem == (
        "Device 'NPU' was asked for and cannot be used: not found, OpenVINO sees CPU, GPU.0."
    )
    assert "qwen-edge doctor" in caught.value.fix


def test_an_explicit_request_that_was_refused_says_why() -> None:
    with pytest.raises(DeviceError, match="compiler aborted"):
        choose_device(DEVICES, ("CPU", "NPU"), "NPU", unusable={"NPU": "compiler aborted"})


def test_a_device_the_package_was_not_made_for_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device((Entry("CPU"),), ("CPU", "GPU"), "GPU")
    assert caught.value.problem == "Device 'GPU' is not among those this was made for: CPU."


def test_an_unknown_device_suggests_the_closest() -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(DEVICES, ("CPU",), "gppu")
    assert caught.value.problem == "Unknown device 'gppu'. Did you mean 'GPU'?"
    assert caught.value.fix == "use one of: auto, CPU, GPU, NPU"


def test_entries_of_a_manifest_work_as_well() -> None:
    assert choose_device((Entry("NPU"), Entry("CPU")), ("CPU",)).value == Entry("CPU")


def test_a_prefix_is_not_a_device() -> None:
    """`GPUX` is not a GPU; `GPU.1` is."""
    assert choose_device((Entry("GPU"), Entry("CPU")), ("GPUX", "CPU")).value == Entry("CPU")
    assert choose_device((Entry("GPU"), Entry("CPU")), ("GPU.1", "CPU")).value == Entry("GPU")
