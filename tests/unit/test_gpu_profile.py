"""The GPU's profile without a GPU: names, values, the memory formula, the limit of one buffer."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

import openvino
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import ResourceError
from qwen_edge.profiles import load_profile, load_recipe
from qwen_edge.profiles.device import MAX_CONTEXT_TOKENS, DeviceProfile
from qwen_edge.profiles.gpu_memory import (
    MAX_BUFFER_BYTES,
    WSL_BUFFER_BYTES,
    check_gpu_buffers,
    estimate_gpu_memory,
    find_max_gpu_context,
    find_why_attention_is_apart,
    list_gpu_buffers,
)
from qwen_edge.profiles.properties import KERNELS, KNOWN_PROPERTIES, PropertyValue


@dataclasses.dataclass(frozen=True)
class Shape:
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151_936


QWEN3_4B = Shape(36, 2_560, 32)
QWEN3_8B = Shape(36, 4_096, 32)
GPU = load_profile("core-ultra-gpu").devices[0]
INT4 = load_recipe("int4-awq")


def gpu(context: int = 16_384, chunk: int = 1_024, **properties: PropertyValue) -> DeviceProfile:
    return DeviceProfile("GPU", {**GPU.properties, **properties}, context, chunk)


# ---- names and values, against the engine that is installed


@functools.cache
def property_names() -> frozenset[str]:
    """Return every property that OpenVINO declares to programs."""
    declared: Any = openvino._pyopenvino.properties  # type: ignore[attr-defined]
    spaces = (
        declared,
        declared.hint,
        declared.intel_gpu,
        declared.intel_gpu.hint,
        declared.intel_cpu,
        declared.intel_npu,
    )
    makers = [getattr(space, name) for space in spaces for name in dir(space)]
    needs_value = declared.cache_encryption_callbacks
    names = {
        maker()
        for maker in makers
        if isinstance(maker, BuiltinFunctionType) and maker is not needs_value
    }
    # Python lacks some; the wheel has the headers they come from.
    for path in (Path(openvino.__file__).parent / "include").rglob("properties.hpp"):
        names |= set(re.findall(r'Property<[^;]*?\{\s*"([A-Z_]+)"\s*\}', path.read_text("utf-8")))
    return frozenset(names)


@functools.cache
def plugin_bytes(name: str) -> bytes:
    """Return a plugin's library; it need not be loadable."""
    [path] = Path(openvino.__file__).parent.glob(f"libs/*{name}_plugin.*")
    return path.read_bytes()


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_names_are_those_that_openvino_declares(device: str) -> None:
    assert len(property_names()) > 60
    assert set(KNOWN_PROPERTIES[device]) - {KERNELS} <= property_names()


@pytest.mark.parametrize("device", ["CPU", "GPU", "NPU"])
def test_names_stand_in_the_plugin_itself(device: str) -> None:
    content = plugin_bytes(f"intel_{device.lower()}")
    # The engine's own library holds the names that all plugins share.
    shared = property_names() if device != "NPU" else frozenset[str]()
    own = set(KNOWN_PROPERTIES[device]) - shared - {KERNELS}  # ours, not the engine's
    assert [name for name in sorted(own) if name.encode() not in content] == []
    assert b"NPUW_LLM_NO_SUCH" not in content


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in KNOWN_PROPERTIES["GPU"]
        if name.startswith("GPU_") or name == "KV_CACHE_PRECISION"
    ],
)
def test_what_is_the_gpus_alone_stands_in_its_plugin(name: str) -> None:
    assert name.encode() in plugin_bytes("intel_gpu")


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_values_are_names_that_openvino_knows(device: str) -> None:
    hint = openvino.properties.hint
    kinds: dict[str, Any] = {
        "PERFORMANCE_HINT": hint.PerformanceMode,
        "EXECUTION_MODE_HINT": hint.ExecutionMode,
        "SCHEDULING_CORE_TYPE": hint.SchedulingCoreType,
    }
    listed = {name: rule.names for name, rule in KNOWN_PROPERTIES[device].items() if rule.names}
    listed.pop(KERNELS, None)
    assert len(listed) >= 4
    for name, values in listed.items():
        if "PRECISION" in name:
            assert [getattr(openvino.Type, v).to_string() for v in values] == list(values)
        else:
            kind = kinds.get(name, hint.Priority)
            assert set(values) <= set(kind.__members__), name


@pytest.mark.parametrize("name", [name for name in KNOWN_PROPERTIES["CPU"] if name != KERNELS])
def test_the_cpu_plugin_takes_every_value_that_is_allowed(name: str) -> None:
    rule = KNOWN_PROPERTIES["CPU"][name]
    samples: tuple[PropertyValue, ...] = (0, 1, 32, True, False, *rule.names)
    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # nothing is checked before the plugin is there
    for value in filter(rule.is_allowed, samples):
        core.set_property("CPU", {name: value})
    with pytest.raises(RuntimeError):
        core.set_property("CPU", {name: "?"})


# ---- the profile


def test_every_setting_of_the_gpu_names_its_source_or_says_what_the_plugin_does() -> None:
    for key, reason in GPU.reasons.items():
        if key != "device":
            assert re.search("plugin|published|OpenVINO", reason), key


def test_the_cache_is_one_that_can_be_saved() -> None:
    """With 8 or 4 bits the GPU plugin's get_state and set_state raise; see its library."""
    assert GPU.properties["KV_CACHE_PRECISION"] == "f16"
    refusal = b"get_state API is supported only when KV-cache compression is disabled"
    assert refusal in plugin_bytes("intel_gpu")


def test_figures_in_the_reasons_are_those_of_the_formula() -> None:
    memory = estimate_gpu_memory(QWEN3_4B, GPU, weights_bytes=2_260_000_000)
    context, text = GPU.max_context_tokens, GPU.reasons["max_context_tokens"]
    assert f"{memory.cache_bytes_per_token / 1e3:.0f} kB per token" in text
    assert f"{context * memory.cache_bytes_per_token / 1e9:.1f} GB of cache" in text
    assert f"{memory.peak_bytes(context) / 1e9:.1f} GB, about" in text
    exact = gpu(context, GPU.prefill_chunk_tokens, INFERENCE_PRECISION_HINT="f32")
    scores = list_gpu_buffers(QWEN3_4B, exact, INT4)[-1]
    assert f"{scores.size_bytes(context) / 1e9:.1f} GB" in GPU.reasons["INFERENCE_PRECISION_HINT"]


# ---- memory


@pytest.mark.parametrize(
    ("shape", "weights_gb", "num_tokens", "published"),
    [
        (QWEN3_4B, 2.26, 32, (3_065.8, 3_237.2)),
        (QWEN3_4B, 2.26, 1_024, (3_402.5, 3_554.0)),
        (QWEN3_4B, 4.03, 1_024, (5_173.0, 5_173.0)),
        (QWEN3_4B, 8.05, 1_024, (9_093.0, 9_093.0)),
        (QWEN3_8B, 4.83, 1_024, (5_758.0, 5_758.0)),
    ],
    ids=["4b-int4-32", "4b-int4", "4b-int8", "4b-fp16", "8b-int4"],
)
def test_the_formula_agrees_with_the_memory_that_openvino_publishes(
    shape: Shape, weights_gb: float, num_tokens: int, published: tuple[float, float]
) -> None:
    """llm_models_7-358H.csv of 2026, "max rss memory", smallest and largest; MB or MiB."""
    settings = gpu(num_tokens + 256, num_tokens)
    memory = estimate_gpu_memory(shape, settings, weights_bytes=round(weights_gb * 1e9))
    predicted = memory.peak_bytes(num_tokens)
    assert 0.9 * published[0] * 1e6 < predicted < 1.1 * published[1] * 2**20


@pytest.mark.parametrize(("precision", "published_mb"), [("f16", 1_024), ("i8", 584), ("u4", 328)])
def test_the_cache_has_the_size_that_openvino_publishes(
    precision: str, published_mb: float
) -> None:
    """Llama-3-8B at 8,192 tokens: 32 layers, 8 key and value heads of 128."""
    settings = gpu(KV_CACHE_PRECISION=precision)
    memory = estimate_gpu_memory(Shape(32, 4_096, 32), settings, weights_bytes=1)
    assert memory.cache_bytes_per_token * 8_192 / 2**20 == pytest.approx(published_mb, rel=0.02)


def test_a_long_prompt_holds_its_cache_twice_for_a_moment() -> None:
    memory = estimate_gpu_memory(QWEN3_4B, GPU, weights_bytes=0)
    one = memory.cache_bytes_per_token
    assert memory.peak_bytes(1_024) == memory.resting_bytes(1_024) + memory.working_bytes
    assert (
        memory.peak_bytes(8_192) - memory.peak_bytes(1_024)
        == 2 * (8_192 - 1_024) * one
        == 2 * (memory.resting_bytes(8_192) - memory.resting_bytes(1_024))
    )


# ---- the limit of one buffer


@pytest.mark.parametrize("profile", ["core-ultra", "core-ultra-gpu"])
@pytest.mark.parametrize("recipe", ["int4-awq", "int8", "fp16"])
@pytest.mark.parametrize("shape", [QWEN3_4B, QWEN3_8B, Shape(40, 5_120, 40)], ids=str)
def test_the_catalog_stays_within_it(shape: Shape, recipe: str, profile: str) -> None:
    entry = load_profile(profile).devices[0]
    check_gpu_buffers(shape, entry, load_recipe(recipe))
    assert find_max_gpu_context(shape, entry, load_recipe(recipe)) >= entry.max_context_tokens


@pytest.mark.parametrize(
    "properties",
    [
        {"INFERENCE_PRECISION_HINT": "f32"},
        {"GPU_ENABLE_SDPA_OPTIMIZATION": False},
    ],
    ids=str,
)
def test_attention_taken_apart_is_refused_with_the_context_that_fits(
    properties: Mapping[str, PropertyValue],
) -> None:
    settings = gpu(131_072, **properties)
    assert find_why_attention_is_apart(QWEN3_4B, settings.properties)
    with pytest.raises(ResourceError) as caught:
        check_gpu_buffers(QWEN3_4B, settings, INT4)
    facts, error = caught.value.facts, caught.value
    longest = facts["max_context_tokens"]
    assert isinstance(longest, int)
    assert f"--max-context-tokens {longest}" in error.fix
    assert "attention scores of 1,024 prompt tokens and 32 heads" in error.problem
    assert f"{MAX_BUFFER_BYTES:,} bytes" in error.problem
    assert error.exit_code == 8
    # What the text proposes is taken, and one token more is not.
    check_gpu_buffers(QWEN3_4B, gpu(longest, **properties), INT4)
    with pytest.raises(ResourceError):
        check_gpu_buffers(QWEN3_4B, gpu(longest + 1, **properties), INT4)
    is_large = gpu(131_072, GPU_ENABLE_LARGE_ALLOCATIONS=True, **properties)
    assert check_gpu_buffers(QWEN3_4B, is_large, INT4) is None


def test_accuracy_mode_computes_in_f32_unless_a_precision_is_given() -> None:
    mode: dict[str, PropertyValue] = {"EXECUTION_MODE_HINT": "ACCURACY"}
    assert find_why_attention_is_apart(QWEN3_4B, mode)
    assert not find_why_attention_is_apart(QWEN3_4B, {**mode, "INFERENCE_PRECISION_HINT": "f16"})
    memory = estimate_gpu_memory(QWEN3_4B, DeviceProfile("GPU", mode, 1_024, 64), weights_bytes=1)
    assert memory.cache_bytes_per_token == 36 * 2 * 8 * 128 * 4


@pytest.mark.parametrize(
    ("head_dim", "is_apart"), [(32, True), (64, False), (72, True), (128, False), (272, True)]
)
def test_heads_of_an_unusual_size_are_taken_apart_where_there_is_no_xmx(
    head_dim: int, is_apart: bool
) -> None:
    shape = dataclasses.replace(QWEN3_4B, head_dim=head_dim)
    assert (find_why_attention_is_apart(shape, GPU.properties) is not None) == is_apart


def test_weights_too_large_for_one_buffer_ask_for_another_recipe() -> None:
    huge = Shape(36, 16_384, 32, vocab_size=151_936)
    with pytest.raises(ResourceError) as caught:
        check_gpu_buffers(huge, GPU, load_recipe("fp16"))
    assert "embedding or output head, 151,936 x 16,384 values" in caught.value.problem
    assert caught.value.fix.startswith("use a recipe with 8-bit embedding")
    assert caught.value.facts["max_context_tokens"] == 0
    check_gpu_buffers(huge, GPU, INT4)
    one_short = 151_936 * 16_384 - 1
    assert find_max_gpu_context(huge, GPU, INT4, limit_bytes=one_short) == 0


def test_weights_of_16_bits_are_widened_where_f32_is_computed() -> None:
    sizes = [
        list_gpu_buffers(QWEN3_4B, gpu(INFERENCE_PRECISION_HINT=precision), load_recipe(recipe))[0]
        for recipe in ("fp16", "int8")
        for precision in ("f16", "f32")
    ]
    assert [size.fixed_bytes / (151_936 * 2_560) for size in sizes] == [2, 4, 1, 1]


def test_wsl_is_told_of_when_its_lower_limit_is_passed() -> None:
    note = check_gpu_buffers(QWEN3_8B, GPU, load_recipe("fp16"))
    assert note is not None
    assert "inside WSL2" in note
    assert "GPU_ENABLE_LARGE_ALLOCATIONS" in note
    with pytest.raises(ResourceError):
        check_gpu_buffers(QWEN3_8B, GPU, load_recipe("fp16"), limit_bytes=WSL_BUFFER_BYTES)
    assert check_gpu_buffers(QWEN3_8B, GPU, INT4) is None


SHAPES = st.builds(
    Shape,
    num_layers=st.integers(1, 96),
    hidden_size=st.integers(64, 16_384),
    num_heads=st.integers(1, 128),
    num_kv_heads=st.integers(1, 16),
    head_dim=st.sampled_from([32, 64, 80, 128, 256]),
    vocab_size=st.integers(128, 300_000),
)


@given(
    shape=SHAPES,
    chunk=st.integers(1, 8_192),
    limit=st.integers(1 << 20, 1 << 33),
    precision=st.sampled_from(["f16", "f32"]),
)
def test_the_longest_context_fits_and_no_longer_one_does(
    shape: Shape, chunk: int, limit: int, precision: str
) -> None:
    settings = gpu(MAX_CONTEXT_TOKENS, chunk, INFERENCE_PRECISION_HINT=precision)
    longest = find_max_gpu_context(shape, settings, INT4, limit_bytes=limit)
    buffers = list_gpu_buffers(shape, settings, INT4)

    def fits(num_tokens: int) -> bool:
        return all(buffer.size_bytes(num_tokens) <= limit for buffer in buffers)

    assert fits(longest) or longest == 0
    assert longest == MAX_CONTEXT_TOKENS or not fits(longest + 1)
