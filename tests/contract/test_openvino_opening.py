"""Opening the IR on a device: which one is taken, and why not the others."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import DeviceError, ResourceError
from qwen_edge.profiles.choose import Choice
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.backends.openvino_static import StaticOpenVinoBackend
from qwen_edge.runtime.devices import openvino_opening
from qwen_edge.runtime.devices.openvino_opening import open_openvino_backend
from qwen_edge.runtime.devices.probing import DeviceReport
from qwen_edge.runtime.loading import load
from qwen_edge.runtime.manifest import DeviceSettings
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.package import read_manifest

CPU = DeviceSettings("CPU", {"INFERENCE_PRECISION_HINT": "f32"}, 256, None, None, 32)
GPU = DeviceSettings("GPU", {}, 256, None, None, 32)
Seal = Callable[..., None]


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled in a child first: the devices of these tests exist here only."""
    monkeypatch.setattr(openvino_opening, "try_compile", lambda *arguments: None)


def choice_of(model: Model) -> Choice[DeviceSettings]:
    assert isinstance(model.device_choice, Choice)
    return model.device_choice


@pytest.mark.trust("T-DEV-07")
def test_memory_that_cannot_suffice_is_refused_before_compiling(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = dataclasses.replace(probe_hardware(), available_memory_bytes=1_000_000)
    monkeypatch.setattr(openvino_opening, "probe_hardware", lambda: scarce)
    monkeypatch.delattr(openvino_opening, "compile_model")
    with pytest.raises(ResourceError, match=r"but 1\.0 MB are available"):
        load(package)


def test_auto_takes_a_device_that_needs_less_memory(
    package: Path, monkeypatch: pytest.MonkeyPatch, seal: Seal
) -> None:
    """Fixed shapes take their whole cache at once, a growing one only what is used."""
    reports = (DeviceReport("CPU", "Some CPU"), DeviceReport("NPU", "Some NPU"))
    monkeypatch.setattr(openvino_opening, "probe_devices", lambda: reports)
    medium = dataclasses.replace(probe_hardware(), available_memory_bytes=100_000_000)
    monkeypatch.setattr(openvino_opening, "probe_hardware", lambda: medium)
    seal(package, devices=(DeviceSettings("NPU", {}, 65_536, 32_768, 32_768, 512), CPU))
    with load(package, warm_up=False) as model:
        assert choice_of(model).value == CPU
        assert "NPU: Running this model on NPU takes about" in choice_of(model).reason


def test_npu_settings_lead_to_the_pipeline_of_fixed_shapes(
    demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin's own pipeline, told to run its parts on the CPU."""
    properties: dict[str, str | bool | int] = {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_DEVICES": "CPU",
        "NPUW_ONLINE_PIPELINE": "NONE",
        "NPUW_LLM_PREFILL_HINT": "STATIC",
        "NPUW_LLM_OPTIMIZE_V_TENSORS": "NO",
        "NPUW_LLM_MAX_PROMPT_LEN": 128,
        "NPUW_LLM_MIN_RESPONSE_LEN": 64,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    manifest = read_manifest(demo_package)
    npu = DeviceSettings("NPU", properties, 192, 128, 64, 128)
    cpu = dataclasses.replace(CPU, properties={"EXECUTION_MODE_HINT": "ACCURACY"})
    both = dataclasses.replace(manifest, devices=(npu, cpu))
    reports = (DeviceReport("CPU", "Some CPU"), DeviceReport("NPU", "Some NPU"))
    monkeypatch.setattr(openvino_opening, "probe_devices", lambda: reports)
    static, choice = open_openvino_backend(demo_package, both)
    growing, _ = open_openvino_backend(demo_package, both, device="CPU")
    assert isinstance(static, StaticOpenVinoBackend)
    assert isinstance(growing, OpenVinoBackend)
    assert choice.value == npu
    for token_ids in ([5, 6, 7, 8], [9], [10, 11]):
        difference = np.abs(static.forward(token_ids) - growing.forward(token_ids)).max()
        assert difference < 0.05  # the plugin keeps its cache in f16
    static.close()
    growing.close()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = (
        DeviceReport("CPU", "Some CPU"),
        DeviceReport("GPU", "", "libOpenCL.so.1 is missing"),
        DeviceReport("NPU", "", "there is none"),
    )
    monkeypatch.setattr(openvino_opening, "probe_devices", lambda: reports)


@pytest.mark.trust("T-DEV-01")
@pytest.mark.usefixtures("no_gpu")
def test_auto_passes_over_an_absent_device_and_keeps_why(package: Path, seal: Seal) -> None:
    seal(package, devices=(GPU, CPU))
    with load(package) as model:
        assert choice_of(model).value.device == "CPU"
        assert "libOpenCL.so.1 is missing" in choice_of(model).reason


@pytest.mark.trust("T-DEV-01")
@pytest.mark.usefixtures("no_gpu")
def test_explicit_device_never_falls_back(package: Path, seal: Seal) -> None:
    seal(package, devices=(GPU, CPU))
    with pytest.raises(DeviceError) as caught:
        load(package, device="GPU")
    assert "libOpenCL.so.1 is missing" in caught.value.problem
    assert "OpenVINO sees: CPU" in caught.value.problem
    with pytest.raises(DeviceError, match="not among those this was made for: GPU, CPU"):
        load(package, device="NPU")


@pytest.fixture
def refusing_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """OpenVINO lists a GPU whose driver then refuses to compile."""
    reports = (DeviceReport("CPU", "Some CPU"), DeviceReport("GPU.0", "Some GPU"))
    monkeypatch.setattr(openvino_opening, "probe_devices", lambda: reports)
    real_compile = compile_model
    tried: list[str] = []

    def compile_or_refuse(model: Any, device: str, properties: Any) -> Any:
        tried.append(device)
        if device == "GPU":
            raise DeviceError("Device 'GPU' refused the model: CL_OUT_OF_HOST_MEMORY.")
        return real_compile(model, device, properties)

    monkeypatch.setattr(
        "qwen_edge.runtime.devices.openvino_opening.compile_model", compile_or_refuse
    )
    return tried


def test_auto_goes_on_after_a_refusal_and_keeps_the_engine_s_words(
    package: Path, refusing_gpu: list[str], caplog: pytest.LogCaptureFixture, seal: Seal
) -> None:
    seal(package, devices=(GPU, CPU))
    with load(package) as model:
        assert list(model.generate([5], max_new_tokens=1)) == [6]
        assert "CL_OUT_OF_HOST_MEMORY" in choice_of(model).reason
    assert refusing_gpu == ["GPU", "CPU"]
    assert "CL_OUT_OF_HOST_MEMORY" in caplog.text


def test_explicit_device_that_refuses_is_not_replaced(
    package: Path, refusing_gpu: list[str], seal: Seal
) -> None:
    seal(package, devices=(GPU, CPU))
    with pytest.raises(DeviceError, match=r"^Device 'GPU' refused the model: CL_OUT_OF_HOST"):
        load(package, device="gpu")
    assert refusing_gpu == ["GPU"]


def test_no_device_left_names_every_refusal(
    package: Path, refusing_gpu: list[str], seal: Seal
) -> None:
    seal(package, devices=(GPU,))
    with pytest.raises(DeviceError, match=r"No device can run this: GPU: .*CL_OUT") as caught:
        load(package)
    assert refusing_gpu == ["GPU"]
    assert isinstance(caught.value.__cause__, DeviceError)


def test_device_that_fails_when_its_buffers_are_allocated_is_passed_over(
    package: Path, monkeypatch: pytest.MonkeyPatch, seal: Seal
) -> None:
    """Found in review: compiling went well, and the next call ended in the driver's own error."""

    class Full:
        def __init__(self, compiled: Any) -> None:
            self._compiled = compiled

        def output(self, name: str) -> Any:
            return self._compiled.output(name)

        def create_infer_request(self) -> Any:
            raise RuntimeError("CL_OUT_OF_RESOURCES")

    def compile_for(model: Any, device: str, properties: Any) -> Any:
        compiled = compile_model(model, "CPU", properties)
        return Full(compiled) if device == "GPU" else compiled

    reports = (DeviceReport("CPU", "Some CPU"), DeviceReport("GPU", "Some GPU"))
    monkeypatch.setattr(openvino_opening, "probe_devices", lambda: reports)
    monkeypatch.setattr(openvino_opening, "compile_model", compile_for)
    seal(package, devices=(GPU, CPU))
    with load(package, warm_up=False) as model:
        assert choice_of(model).value == CPU
        assert "CL_OUT_OF_RESOURCES" in choice_of(model).reason
    with pytest.raises(DeviceError, match="CL_OUT_OF_RESOURCES"):
        load(package, device="GPU", warm_up=False)


def gpu_settings() -> DeviceSettings:
    properties = {"ACTIVATIONS_SCALE_FACTOR": 8.0, "INFERENCE_PRECISION_HINT": "f16"}
    return DeviceSettings("GPU", properties, 64, None, None, 16)


def test_a_factor_of_older_packages_does_not_reach_the_gpu(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def remember(model: Any, device: str, properties: dict[str, Any]) -> Any:
        seen.update(properties)
        return compile_model(model, "CPU", {})

    monkeypatch.setattr(openvino_opening, "compile_model", remember)
    manifest = read_manifest(package)
    vocab_size = manifest.model.vocab_size
    openvino_opening.compile_backend(package, gpu_settings(), vocab_size=vocab_size).close()
    assert seen == {"INFERENCE_PRECISION_HINT": "f16"}


def test_the_driver_s_own_limit_of_a_buffer_counts(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Driver:
        def Core(self) -> "Driver":  # noqa: N802 - OpenVINO's name
            return self

        def get_property(self, device: str, name: str) -> int:
            assert (device, name) == ("GPU", "GPU_DEVICE_MAX_ALLOC_MEM_SIZE")
            return 1

    monkeypatch.setattr(openvino_opening, "import_openvino", Driver)
    with pytest.raises(ResourceError):
        openvino_opening._check_gpu(read_manifest(package), gpu_settings())
