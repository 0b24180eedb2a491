"""Memory: refused before loading when it cannot suffice, with the figures."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from qwen_edge.errors import ResourceError
from qwen_edge.runtime.manifest import DeviceSettings, FileFacts, Manifest, ModelFacts, OnnxFacts
from qwen_edge.runtime.memory import check_memory, estimate_memory

SAMPLE = Manifest.from_bytes((Path(__file__).parents[1] / "data" / "manifest.json").read_bytes())
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


def settings(device: str, **properties: str) -> DeviceSettings:
    prompt = 1024 if device == "NPU" else None
    return DeviceSettings(device, properties, 4096, prompt, prompt, 512)


def test_estimate_is_near_what_was_measured() -> None:
    """Measured: 2.6 GB private memory, 85 KB of u8 cache per token."""
    estimate = estimate_memory(QWEN3_4B, settings("CPU"))
    assert 2.55e9 < estimate.model_bytes < 2.75e9
    assert 84_000 < estimate.cache_bytes_per_token < 86_000
    assert estimate.min_cache_tokens == 1024
    assert estimate.max_bytes - estimate.min_bytes == 3072 * estimate.cache_bytes_per_token


def test_weights_of_16_bits_are_widened_on_the_cpu() -> None:
    """Measured: Qwen3-0.6B fp16, 1.19 GB of weights, took 5.13 GB of private memory to load."""
    recipe = dataclasses.replace(SAMPLE.recipe, weights="fp16")
    files = {**SAMPLE.files, "openvino_model.bin": FileFacts(1_190_000_000, "0" * 64)}
    fp16 = dataclasses.replace(QWEN3_4B, recipe=recipe, files=files)
    assert 4.9e9 < estimate_memory(fp16, settings("CPU")).model_bytes < 5.4e9
    assert estimate_memory(fp16, settings("GPU")).model_bytes < 1.5e9
    bf16 = settings("CPU", INFERENCE_PRECISION_HINT="bf16")
    assert estimate_memory(fp16, bf16).model_bytes < 1.5e9


def test_onnx_estimate_is_near_what_was_measured() -> None:
    """Measured: 2.51 GB private memory after loading, 2.87 GB with 513 tokens of float32 cache."""
    estimate = estimate_memory(QWEN3_4B, settings("CPU"), "onnx")
    assert 2.5e9 < estimate.model_bytes < 2.75e9
    assert estimate.cache_bytes_per_token == 2 * 36 * 8 * 128 * 4
    assert 2.8e9 < estimate.model_bytes + 513 * estimate.cache_bytes_per_token < 2.9e9
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


def test_fixed_shapes_take_the_whole_cache_at_once() -> None:
    assert estimate_memory(QWEN3_4B, settings("NPU")).min_cache_tokens == 4096


def test_too_little_memory_is_refused_with_the_parts() -> None:
    estimate = estimate_memory(QWEN3_4B, settings("CPU"))
    with pytest.raises(ResourceError) as caught:
        check_memory(estimate, 2_000_000_000, "CPU")
    assert "on CPU takes about 2.7 GB of memory (model 2.6 GB, cache of 1,024 tokens" in (
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
