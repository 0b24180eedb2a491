"""Memory: refused before loading when it cannot suffice, with the figures."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import ResourceError
from qwen_edge.profiles.gpu_memory import estimate_gpu_memory
from qwen_edge.runtime.manifest import DeviceSettings, FileFacts, Manifest, ModelFacts, OnnxFacts
from qwen_edge.runtime.resources.memory import (
    COMFORT_BYTES,
    MemoryEstimate,
    check_memory,
    estimate_memory,
)

SAMPLE = Manifest.from_bytes((Path(__file__).parents[2] / "data" / "manifest.json").read_bytes())
QWEN3_4B = dataclasses.replace(
    SAMPLE,
    model=ModelFacts(
        "Qwen3ForCausalLM", "qwen3", 36, 2560, 32, 8, 128, 151_936, 4_022_468_096, 40_960
    ),
    files={
        **SAMPLE.files,
        "openvino_model.bin": FileFacts(2_300_000_000, "0" * 64),
        "model.onnx.data": FileFacts(2_340_937_728, "0" * 64),
    },
)


@pytest.fixture(autouse=True)
def engine_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures below are those of the engine's kernels, on any machine."""
    monkeypatch.setattr("qwen_edge.runtime.resources.memory.are_used", lambda _: False)


def settings(device: str, **properties: str) -> DeviceSettings:
    prompt = 1024 if device == "NPU" else None
    return DeviceSettings(device, properties, 4096, prompt, prompt, 512)


@dataclass(frozen=True)
class Measured:
    """Private memory of a process with 512 tokens in its cache; chunks of 512, f32, u8 cache."""

    weights: Literal["fp16", "int8", "int4"]
    num_layers: int
    hidden_size: int
    weights_bytes: int
    private_bytes: int


MEASURED = {
    "0.6B int4": Measured("int4", 28, 1024, 383_383_280, 682_000_000),
    "0.6B int8": Measured("int8", 28, 1024, 597_735_072, 902_000_000),
    "0.6B fp16": Measured("fp16", 28, 1024, 1_192_000_000, 5_740_000_000),
    "1.7B int4": Measured("int4", 28, 2048, 1_038_780_128, 1_523_000_000),
    "4B int4": Measured("int4", 36, 2560, 2_263_625_456, 2_867_000_000),
}


@pytest.mark.parametrize("case", MEASURED.values(), ids=MEASURED)
def test_estimates_are_within_a_tenth_of_what_was_measured(case: Measured) -> None:
    model = dataclasses.replace(
        QWEN3_4B.model, num_layers=case.num_layers, hidden_size=case.hidden_size
    )
    files = {
        **SAMPLE.files,
        "tokenizer.json": FileFacts(11_422_654, "0" * 64),
        "openvino_model.bin": FileFacts(case.weights_bytes, "0" * 64),
    }
    recipe = dataclasses.replace(SAMPLE.recipe, weights=case.weights)
    manifest = dataclasses.replace(QWEN3_4B, model=model, files=files, recipe=recipe)
    estimate = estimate_memory(manifest, settings("CPU"))
    predicted = estimate.bytes_at(512) + estimate.process_bytes
    assert predicted == pytest.approx(case.private_bytes, rel=0.1)


def test_the_cache_is_near_what_was_measured() -> None:
    """Measured: 85 KB of u8 cache per token."""
    estimate = estimate_memory(QWEN3_4B, settings("CPU"))
    assert 84_000 < estimate.cache_bytes_per_token < 86_000
    assert estimate.min_cache_tokens == 1024
    assert estimate.max_bytes - estimate.min_bytes == 3072 * estimate.cache_bytes_per_token


def test_weights_of_16_bits_are_widened_on_the_cpu_where_it_computes_in_f32() -> None:
    recipe = dataclasses.replace(SAMPLE.recipe, weights="fp16")
    files = {**SAMPLE.files, "openvino_model.bin": FileFacts(1_190_000_000, "0" * 64)}
    fp16 = dataclasses.replace(QWEN3_4B, recipe=recipe, files=files)
    assert estimate_memory(fp16, settings("CPU")).model_bytes > 5e9
    bf16 = settings("CPU", INFERENCE_PRECISION_HINT="bf16")
    assert estimate_memory(fp16, bf16).model_bytes < 1.6e9


def test_onnx_estimate_is_near_what_was_measured() -> None:
    """Measured: 2.51 GB private memory after loading, 2.87 GB with 513 tokens of float32 cache."""
    estimate = estimate_memory(QWEN3_4B, settings("CPU"), "onnx")
    assert 2.5e9 < estimate.model_bytes < 2.75e9
    assert estimate.cache_bytes_per_token == 2 * 36 * 8 * 128 * 4
    assert 2.75e9 < estimate.model_bytes + 513 * estimate.cache_bytes_per_token < 2.9e9
    assert (estimate.min_cache_tokens, estimate.max_cache_tokens) == (1024, 4096)


@pytest.mark.parametrize(
    ("weights", "is_portable", "weights_bytes", "measured_bytes"),
    [
        ("fp16", False, 1_194_065_920, 5_340_000_000),
        ("int4", False, 400_523_264, 458_000_000),
        ("fp16", True, 1_191_968_768, 3_040_000_000),
        ("int8", True, 609_615_872, 1_023_000_000),
        ("int4", True, 393_084_928, 623_000_000),
    ],
    ids=str,
)
def test_onnx_factors_are_near_what_was_measured(
    weights: Literal["fp16", "int8", "int4"],
    is_portable: bool,
    weights_bytes: int,
    measured_bytes: int,
) -> None:
    """Qwen3-0.6B, private memory without the cache; OpenVINO's properties count for nothing."""
    manifest = dataclasses.replace(
        QWEN3_4B,
        recipe=dataclasses.replace(SAMPLE.recipe, weights=weights),
        files={"model.onnx.data": FileFacts(weights_bytes, "0" * 64)},
        onnx=OnnxFacts(21, is_portable, 4096, 512, 4),
    )
    hinted = settings("CPU", INFERENCE_PRECISION_HINT="bf16", KV_CACHE_PRECISION="u8")
    estimate = estimate_memory(manifest, hinted, "onnx")
    assert 0.98 < estimate.model_bytes / measured_bytes < 1.15
    # Standard operators write the cache anew at each step, beside the old one.
    assert estimate.cache_bytes_per_token == 294_912 * (2 if is_portable else 1)


@pytest.mark.parametrize(
    ("device", "properties", "expected"),
    [
        ("CPU", {}, 84_787),
        ("CPU", {"KV_CACHE_PRECISION": "f16"}, 147_456),
        ("CPU", {"EXECUTION_MODE_HINT": "ACCURACY"}, 294_912),
        ("CPU", {"KV_CACHE_PRECISION": "unheard"}, 294_912),
        ("GPU", {}, 147_456),
        ("NPU", {}, 147_456),
    ],
    ids=str,
)
def test_cache_bytes_follow_the_precision(
    device: str, properties: dict[str, str], expected: int
) -> None:
    estimate = estimate_memory(QWEN3_4B, settings(device, **properties))
    assert estimate.cache_bytes_per_token == expected


def test_a_gpu_is_estimated_by_its_own_formula() -> None:
    """Weights, process and working buffers; the cache is there twice while it grows."""
    gpu = estimate_gpu_memory(QWEN3_4B.model, settings("GPU"), weights_bytes=2_300_000_000)
    estimate = estimate_memory(QWEN3_4B, settings("GPU"))
    assert estimate.process_bytes == 0
    for tokens in (2_000, 4_000):
        assert estimate.bytes_at(tokens) == pytest.approx(gpu.peak_bytes(tokens), rel=0.05)


@given(available=st.integers(0, 10**10), tokens=st.integers(1, 100_000))
def test_the_largest_context_is_the_largest_that_fits(available: int, tokens: int) -> None:
    estimate = MemoryEstimate(10**9, 10**5, min(tokens, 1024), tokens, cache_copies=2)
    fitting = estimate.fitting_tokens(available)
    assert 0 <= fitting <= tokens
    if fitting:
        assert estimate.bytes_at(fitting) <= available
        assert fitting == tokens or estimate.bytes_at(fitting + 1) > available
    else:
        assert estimate.min_bytes > available
    assert estimate.fitting_tokens(None) == tokens


def test_little_room_beside_the_model_is_told() -> None:
    estimate = estimate_memory(QWEN3_4B, settings("CPU"))
    notes = estimate.find_notes(estimate.max_bytes + 100_000_000)
    assert len(notes) == 1 and "MB of memory are left beside the model" in notes[0]
    assert estimate.find_notes(estimate.min_bytes + 2 * COMFORT_BYTES) == ()
    assert estimate.find_notes(None) == ()


def test_fixed_shapes_take_the_whole_cache_at_once() -> None:
    assert estimate_memory(QWEN3_4B, settings("NPU")).min_cache_tokens == 4096


def test_too_little_memory_is_refused_with_the_parts() -> None:
    estimate = estimate_memory(QWEN3_4B, settings("CPU"))
    with pytest.raises(ResourceError) as caught:
        check_memory(estimate, 2_000_000_000, "CPU")
    assert "on CPU takes about 2.8 GB of memory (model 2.7 GB, cache of 1,024 tokens" in (
        caught.value.problem
    )
    assert "2.0 GB are available" in caught.value.problem
    assert caught.value.facts["needed_bytes"] == estimate.min_bytes


def test_memory_that_may_run_out_later_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    estimate = estimate_memory(QWEN3_4B, settings("CPU"))
    check_memory(estimate, estimate.min_bytes, "CPU")
    assert "holds a conversation of about 1,024 tokens; the context of 4,096" in caplog.text


@pytest.mark.parametrize("available_bytes", [None, 10**12], ids=["unknown", "plenty"])
def test_enough_or_unknown_memory_is_silent(
    available_bytes: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    check_memory(estimate_memory(QWEN3_4B, settings("CPU")), available_bytes, "CPU")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("device", "weights", "fmt", "is_mapped"),
    [
        ("CPU", "int4", "openvino", True),
        ("CPU", "int8", "openvino", True),
        ("CPU", "fp16", "openvino", False),
        ("CPU", "int4", "onnx", False),
        ("GPU", "int4", "openvino", False),
        ("NPU", "int4", "openvino", False),
    ],
)
def test_our_kernels_use_the_file_where_it_lies(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    weights: Literal["fp16", "int8", "int4"],
    fmt: Literal["openvino", "onnx"],
    is_mapped: bool,
) -> None:
    package = dataclasses.replace(
        QWEN3_4B, recipe=dataclasses.replace(QWEN3_4B.recipe, weights=weights)
    )
    size = package.files["openvino_model.bin"].size_bytes
    of_engine = estimate_memory(package, settings(device), fmt)
    monkeypatch.setattr("qwen_edge.runtime.resources.memory.are_used", lambda _: True)
    found = estimate_memory(package, settings(device), fmt)
    assert found.mapped_bytes == (size if is_mapped else 0)
    # Measured: 0.29 GB of private memory besides the file and the program, 512 tokens read.
    assert found.private_bytes_at(512) < (0.6e9 if is_mapped else 100e9)
    # A model that does not fit beside its own file is still refused.
    assert found.min_bytes >= size
    assert found.model_bytes <= of_engine.model_bytes
    assert of_engine.mapped_bytes == 0
