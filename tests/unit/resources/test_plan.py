"""What running a package takes here: by device, refused with both figures, told with notes."""

import dataclasses
from pathlib import Path

import pytest

from qwen_edge.errors import DeviceError, ResourceError, UsageError
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.machine.engine_speed import EngineSpeed
from qwen_edge.runtime.machine.speed import MachineSpeed
from qwen_edge.runtime.manifest import DeviceSettings, FileFacts, Manifest, ModelFacts, OnnxFacts
from qwen_edge.runtime.resources import plan as resource_plan
from qwen_edge.runtime.resources.plan import add_times, check_fits, plan_memory

SAMPLE = Manifest.from_bytes((Path(__file__).parents[2] / "data" / "manifest.json").read_bytes())
QWEN3_4B = dataclasses.replace(
    SAMPLE,
    model=ModelFacts(
        "Qwen3ForCausalLM", "qwen3", 36, 2560, 32, 8, 128, 151_936, 4_022_468_096, 40_960
    ),
    devices=(
        DeviceSettings("GPU", {}, 16_384, None, None, 1024),
        DeviceSettings("CPU", {"INFERENCE_PRECISION_HINT": "f32"}, 32_768, None, None, 512),
        DeviceSettings("NPU", {}, 4096, 2048, 2048, 2048),
    ),
    files={
        **SAMPLE.files,
        "openvino_model.bin": FileFacts(2_263_625_456, "0" * 64),
        "model.onnx.data": FileFacts(2_340_937_728, "0" * 64),
        "model.onnx": FileFacts(1_000_000, "0" * 64),
    },
    onnx=OnnxFacts(21, False, 8192, 512, 4),
)
FOLDER = Path("package")
MACHINE = MachineSpeed(25e9, 1e9, 68e6)
ENGINE = EngineSpeed(0.3e9, 300e9, 45e9, 75e9)


@pytest.fixture(autouse=True)
def engine_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures below are those of the engine's kernels, on any machine."""
    monkeypatch.setattr("qwen_edge.runtime.resources.memory.are_used", lambda _: False)


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int | None:
    """Make this machine have so much memory to give."""
    amount: int | None = request.param
    hardware = dataclasses.replace(probe_hardware(), available_memory_bytes=amount)
    monkeypatch.setattr(resource_plan, "probe_hardware", lambda: hardware)
    return amount


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine one whose speeds are known."""
    monkeypatch.setattr(resource_plan, "measure_machine", lambda: MACHINE)
    monkeypatch.setattr(resource_plan, "measure_engine", lambda *args, **kwargs: ENGINE)


@pytest.mark.parametrize("available", [64_000_000_000], indirect=True)
def test_every_device_is_planned_in_the_order_it_would_be_tried(available: int) -> None:
    plans = plan_memory(FOLDER, QWEN3_4B, unusable={"GPU": "no driver"})
    assert [(plan.format, plan.device) for plan in plans] == [
        ("openvino", "GPU"),
        ("openvino", "CPU"),
        ("openvino", "NPU"),
        ("onnx", "CPU"),
    ]
    assert [plan.problem for plan in plans] == ["no driver", None, None, None]
    assert [plan.context_tokens for plan in plans] == [0, 32_768, 4096, 8192]
    assert all(plan.available_bytes == available for plan in plans)
    check_fits(plans)


@pytest.mark.parametrize("available", [64_000_000_000], indirect=True)
def test_only_what_was_asked_for_is_planned(available: int) -> None:
    del available
    named = plan_memory(FOLDER, QWEN3_4B, device="NPU")
    assert [plan.device for plan in named] == ["NPU"]
    onnx = plan_memory(FOLDER, QWEN3_4B, backend="onnx")
    assert [plan.format for plan in onnx] == ["onnx"]
    provider = plan_memory(FOLDER, QWEN3_4B, device="DmlExecutionProvider")
    assert provider == ()
    check_fits(provider)  # only the engine can tell
    with pytest.raises(UsageError):
        plan_memory(FOLDER, QWEN3_4B, device="PUU")


@pytest.mark.parametrize("available", [2_000_000_000], indirect=True)
def test_where_no_device_has_room_the_least_needy_is_refused(available: int) -> None:
    plans = plan_memory(FOLDER, QWEN3_4B)
    assert all(plan.problem and plan.context_tokens == 0 for plan in plans)
    with pytest.raises(
        ResourceError, match=r"on CPU takes about 2\.7 GB .* 2\.0 GB are avail"
    ) as e:
        check_fits(plans)
    assert e.value.facts["available_bytes"] == available
    assert e.value.facts["needed_bytes"] == min(plan.memory.min_bytes for plan in plans)


@pytest.mark.parametrize("available", [3_100_000_000], indirect=True)
def test_a_short_context_and_a_tight_machine_are_notes(available: int) -> None:
    cpu = plan_memory(FOLDER, QWEN3_4B, backend="openvino", device="CPU")[0]
    assert 1024 < cpu.context_tokens < 6000
    assert cpu.memory.bytes_at(cpu.context_tokens) <= available
    assert len(cpu.notes) == 2
    assert f"about {cpu.context_tokens:,} tokens" in cpu.notes[0]


@pytest.mark.parametrize("available", [None], indirect=True)
def test_a_system_that_does_not_tell_its_memory_refuses_nothing(available: None) -> None:
    del available
    plans = plan_memory(FOLDER, QWEN3_4B)
    check_fits(plans)
    assert all(not plan.problem and not plan.notes for plan in plans)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("available", [64_000_000_000], indirect=True)
def test_times_are_those_of_the_cpu_and_no_other(available: int, tmp_path: Path) -> None:
    del available
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}', encoding="utf-8")
    plans = add_times(tmp_path, QWEN3_4B, plan_memory(tmp_path, QWEN3_4B))
    timed = [plan for plan in plans if plan.time is not None]
    assert [(plan.format, plan.device) for plan in timed] == [("openvino", "CPU")]
    time = timed[0].time
    assert time is not None
    # 2.3 GB at 25 GB/s are 91 ms a token; 3.6 G weights at 300 G/s 12 ms a token of a prompt.
    assert 5 < time.answer_tokens_per_s < 11
    assert 30 < time.prompt_tokens_per_s < 80
    data = timed[0].to_json()
    assert data["time"]["load_s"] == time.load_s
    assert data["memory"]["max_bytes"] > data["memory"]["min_bytes"]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("available", [64_000_000_000], indirect=True)
def test_an_engine_that_refuses_is_a_problem_of_its_device(
    available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del available

    def refuse(*args: object, **kwargs: object) -> EngineSpeed:
        raise DeviceError("Device 'CPU' refused the model.", "")

    monkeypatch.setattr(resource_plan, "measure_engine", refuse)
    plans = add_times(tmp_path, QWEN3_4B, plan_memory(tmp_path, QWEN3_4B, device="CPU"))
    assert plans[0].problem == "Device 'CPU' refused the model."
    assert plans[0].context_tokens == 0
