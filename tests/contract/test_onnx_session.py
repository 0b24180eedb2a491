"""Sessions of ONNX Runtime: the provider that was asked for runs, or it is said why not."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import DeviceError, PackageError, ResourceError
from qwen_edge.profiles.providers import Provider, ProviderOption, Verdict, choose_provider
from qwen_edge.runtime.backends import onnx_session
from qwen_edge.runtime.backends.onnx_file import OnnxModel, read_onnx
from qwen_edge.runtime.backends.onnx_session import (
    CPU_PROVIDER,
    create_session,
    engine_message,
    is_memory_failure,
)
from qwen_edge.runtime.devices.providers import import_onnxruntime

CPU = choose_provider([CPU_PROVIDER]).value
FINE = Verdict("auto", "for the test", "none")
GPU = Provider(
    "SomeGpuExecutionProvider",
    "GPU",
    "pip install some-gpu",
    FINE,
    FINE,
    options={"speed": ProviderOption("11", "louder", "none")},
)

MakeOnnx = Callable[..., Path]


@pytest.fixture(scope="module")
def model(make_onnx: MakeOnnx) -> OnnxModel:
    return read_onnx(make_onnx())


def test_options_reach_the_engine(model: OnnxModel) -> None:
    session = create_session(model, CPU, accuracy_level=4, threads=1)
    options = session.get_session_options()
    assert session.get_providers() == [CPU_PROVIDER]
    assert options.intra_op_num_threads == 1
    assert not options.enable_mem_pattern
    assert not options.enable_profiling
    assert options.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "4"
    level = import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.graph_optimization_level == level
    assert create_session(model, CPU, accuracy_level=4).get_session_options() is not options


@pytest.fixture
def loud_engine() -> Iterator[None]:
    """Let the engine write as it does by itself: somebody may have imported it before us."""
    engine = import_onnxruntime()
    engine.set_default_logger_severity(2)
    yield
    engine.set_default_logger_severity(4)


@pytest.mark.usefixtures("loud_engine")
@pytest.mark.parametrize("text", [b"", b"nonsense", b"\x08\x0a"], ids=["empty", "text", "no graph"])
def test_file_the_engine_cannot_read_is_the_package_s_fault(
    model: OnnxModel, text: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PackageError, match="ONNX Runtime cannot read the model") as caught:
        create_session(dataclasses.replace(model, text=text), CPU, accuracy_level=1)
    assert "ONNXRuntimeError" not in caught.value.problem
    assert "qwen-edge verify" in caught.value.fix
    assert capfd.readouterr() == ("", "")


def test_weights_that_are_gone_are_named(model: OnnxModel, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"model\.onnx\.data"):
        create_session(dataclasses.replace(model, folder=tmp_path), CPU, accuracy_level=1)


@pytest.mark.usefixtures("loud_engine")
def test_run_that_fails_says_nothing_by_itself(
    model: OnnxModel, capfd: pytest.CaptureFixture[str]
) -> None:
    session = create_session(model, CPU, accuracy_level=1)
    feeds = {
        value.name: np.zeros((1, 2, 0, 16), dtype=np.float32) for value in session.get_inputs()
    }
    feeds |= {name: np.full((1, 1), 99) for name in ("input_ids", "attention_mask")}
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, feeds)
    assert capfd.readouterr() == ("", "")


def test_absent_provider_names_what_is_there_and_what_brings_it(model: OnnxModel) -> None:
    with pytest.raises(DeviceError, match="SomeGpuExecutionProvider is not in this") as caught:
        create_session(model, GPU, accuracy_level=1)
    assert CPU_PROVIDER in caught.value.problem
    assert caught.value.fix == "pip install some-gpu"


@pytest.mark.skipif(
    "AzureExecutionProvider" not in import_onnxruntime().get_available_providers(),
    reason="needs a build with a provider that takes no work",
)
def test_provider_that_takes_none_of_the_work_is_refused(model: OnnxModel) -> None:
    """Azure's provider is in many builds and has kernels for two operators."""
    azure = dataclasses.replace(GPU, name="AzureExecutionProvider", options={})
    with pytest.raises(DeviceError, match="takes none of the model's 17 matrix products"):
        create_session(model, azure, accuracy_level=1)


class StandIn:
    """An engine with one GPU provider, whose sessions are what a test says."""

    def __init__(self, session: object, *, devices: tuple[str, ...] = ()) -> None:
        self._session = session
        self._devices = devices
        self.made: list[dict[str, Any]] = []
        self.options: Any = SimpleNamespace(
            add_session_config_entry=lambda key, value: None,
            add_provider_for_devices=lambda found, options: self.made.append(
                {"devices": found, "options": options}
            ),
        )
        self.GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)

    def SessionOptions(self) -> Any:  # noqa: N802
        return self.options

    def get_available_providers(self) -> list[str]:
        return [GPU.name, CPU_PROVIDER]

    def get_ep_devices(self) -> list[Any]:
        kinds = [SimpleNamespace(type=SimpleNamespace(name=name)) for name in self._devices]
        return [SimpleNamespace(ep_name=GPU.name, device=kind) for kind in kinds]

    def InferenceSession(self, text: bytes, options: Any, **given: Any) -> object:  # noqa: N802
        self.made.append(given)
        if isinstance(self._session, Exception):
            raise self._session
        return self._session


class StandInSession:
    """A session that runs on these providers, with these operators on each."""

    def __init__(self, **operators: tuple[str, ...]) -> None:
        self._operators = operators

    def get_providers(self) -> list[str]:
        return [f"{name}ExecutionProvider" for name in self._operators]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=f"{name}ExecutionProvider",
                get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=kind) for kind in kinds],
            )
            for name, kinds in self._operators.items()
        ]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    """Return a function that puts a stand-in for the engine in place."""

    def put(session: object, **options: Any) -> StandIn:
        engine = StandIn(session, **options)
        monkeypatch.setattr(onnx_session, "import_onnxruntime", lambda: engine)
        return engine

    return put


def test_provider_that_does_not_start_is_not_replaced(
    model: OnnxModel, use: Callable[..., StandIn]
) -> None:
    """The engine goes on with the CPU and says so only in its log."""
    engine = use(StandInSession(CPU=("MatMul",)))
    with pytest.raises(DeviceError, match="did not start; ONNX Runtime would go on without it"):
        create_session(model, GPU, accuracy_level=1)
    assert engine.made == [
        {
            "providers": [(GPU.name, {"speed": "11"})],
            "enable_fallback": False,
            "read_config_from_model": False,
        }
    ]


@pytest.mark.parametrize(
    "operators",
    [
        {"SomeGpu": ("MatMulNBits",) * 7, "CPU": ("Shape", "Gather", "Cast")},
        {"SomeGpu": (), "CPU": ("Shape", "Gather", "Cast")},
        {"SomeGpu": ("MatMulNBits",) * 7, "CPU": ("GroupQueryAttention",)},
    ],
    ids=["shapes stay", "nodes not listed", "attention stays"],
)
def test_a_few_nodes_on_the_cpu_are_no_refusal(
    model: OnnxModel, use: Callable[..., StandIn], operators: dict[str, tuple[str, ...]]
) -> None:
    use(StandInSession(**operators))
    assert create_session(model, GPU, accuracy_level=1).get_providers()[0] == GPU.name


def test_all_work_on_the_cpu_is_one(model: OnnxModel, use: Callable[..., StandIn]) -> None:
    use(StandInSession(SomeGpu=("Add", "Mul"), CPU=("MatMulNBits", "MatMulNBits")))
    with pytest.raises(DeviceError, match="takes none of the model's 2 matrix products"):
        create_session(model, GPU, accuracy_level=1)


def test_library_of_its_own_is_given_the_device_of_its_kind(
    model: OnnxModel, use: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named in `providers=`, such a provider is passed over without a word."""
    engine = use(StandInSession(SomeGpu=("MatMul",)), devices=("CPU", "GPU", "GPU"))
    monkeypatch.setattr(
        onnx_session, "find_plugin_devices", lambda engine, _: tuple(engine.get_ep_devices())
    )
    create_session(model, GPU, accuracy_level=1)
    chosen, session = engine.made
    assert [device.device.type.name for device in chosen["devices"]] == ["GPU"]
    assert chosen["options"] == {"speed": "11"}
    assert "providers" not in session


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (MemoryError(), ResourceError, "Memory did not suffice"),
        (RuntimeError("std::bad_alloc"), ResourceError, "Memory did not suffice"),
        (
            RuntimeError(
                "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::"
                "BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested "
                "buffer of size 12"
            ),
            ResourceError,
            "Memory did not suffice",
        ),
        (
            RuntimeError(
                "/onnxruntime_src/onnxruntime/core/providers/webgpu/webgpu_context.cc:65 "
                "onnxruntime::webgpu::WebGpuContext::Initialize(const Config&)::<lambda()> status "
                "== wgpu::RequestAdapterStatus::Success was false. Failed to get a WebGPU "
                "adapter: No supported adapters\n"
            ),
            DeviceError,
            "refused the model: Failed to get a WebGPU adapter: No supported adapters.",
        ),
        (ValueError("what it does not know"), DeviceError, "refused the model: what it does not"),
    ],
    ids=["python", "c++", "arena", "no adapter", "value"],
)
def test_refusals_have_their_class_and_the_engine_s_words(
    model: OnnxModel,
    use: Callable[..., StandIn],
    error: Exception,
    expected: type[Exception],
    words: str,
) -> None:
    use(error)
    with pytest.raises(expected) as caught:
        create_session(model, GPU, accuracy_level=1)
    assert words in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : Load model failed. \nmore", "Load model failed"),
        (
            "Error in execution: Non-zero status code returned while running Gather node. "
            "Name:'x' Status Message: idx=70 must be within the range",
            "Non-zero status code returned while running Gather node. Name:'x' Status Message: "
            "idx=70 must be within the range",
        ),
        (r"D:\a\_work\1\s\onnxruntime\core\session\x.cc:12 it broke", "it broke"),
        ("", "RuntimeError"),
    ],
    ids=["status", "run", "windows", "empty"],
)
def test_engine_s_words_are_kept_and_its_noise_is_not(message: str, expected: str) -> None:
    assert engine_message(RuntimeError(message)) == expected


def test_memory_is_not_seen_everywhere() -> None:
    assert not is_memory_failure(RuntimeError("memory pattern is not allowed"))
