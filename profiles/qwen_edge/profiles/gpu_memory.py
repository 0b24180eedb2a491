"""What a model takes on a GPU and how large its largest buffer is, by arithmetic alone.

Owns the formula (docs/gpu.md shows it with figures) and the limit that Intel's drivers set for a
single buffer. It asks no device, so that an export can refuse what no built-in GPU will take.
None of it was measured on a GPU: it follows OpenVINO's source and is compared with OpenVINO's
published tables (tests/unit/test_gpu_profile.py). `legality.py` is the same for recipes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from qwen_edge.errors import ResourceError, format_bytes
from qwen_edge.profiles.device import MAX_CONTEXT_TOKENS, MIN_CONTEXT_TOKENS
from qwen_edge.profiles.properties import PropertyValue

# CL_DEVICE_MAX_MEM_ALLOC_SIZE as users report it of the GPUs in Core Ultra processors before Xe2
# (openvino.genai issue 2406), and of any GPU inside WSL2 (openvino issue 34856). Xe2 and later
# allow more, and OpenVINO lifts the limit there by itself (its guide "Managing iGPU memory").
MAX_BUFFER_BYTES = 4_294_959_104
WSL_BUFFER_BYTES = 1_073_741_824
# What remains of OpenVINO's table for Core Ultra X7 358H (2026, "max rss memory") when weights and
# cache are taken off: the process, its libraries, compiled kernels. 0.9 to 1.2 GB.
_FIXED_BYTES = 1_100_000_000
# A cache that outgrew its buffer moves to one with room for 128 to 191 tokens more.
# Source: OpenVINO, src/plugins/intel_gpu/src/graph/kv_cache.cpp, get_prealloc_iter_num.
_SPARE_TOKENS = 191
# Bytes of one cached value, scales included. Published for Llama-3-8B at 8,192 tokens: f16
# 1,024.12 MB, 8 bits 584.12, 4 bits 328.12 (OpenVINO, src/plugins/intel_gpu/docs/blog).
_CACHE_BYTES = {"u4": 0.65, "i4": 0.65, "u8": 1.15, "i8": 1.15, "f16": 2.0, "f32": 4.0}
_MASK_BYTES = 4
# Rows of activations alive at one time, counted in widths of the model, 16 bits each: queries,
# keys, values, residual stream, and the three of the MLP, 3 to 5 times as wide.
_ROWS_ALIVE = 20
# Head sizes that every GPU's fused attention takes; GPUs with XMX take more.
# Source: OpenVINO, src/plugins/intel_gpu/src/plugin/transformations_pipeline.cpp.
_FUSED_HEAD_DIMS = range(64, 257, 16)


class ModelShape(Protocol):
    """The numbers of a decoder that decide: an export's specification or a manifest's facts."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def num_heads(self) -> int:
        """Query heads."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        ...

    @property
    def head_dim(self) -> int:
        """Values of one head."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        ...


class WeightFormats(Protocol):
    """A recipe, as far as the largest matrices go."""

    @property
    def embedding(self) -> str:
        """ "fp16" or "int8"."""
        ...

    @property
    def head(self) -> str:
        """ "fp16" or "int8"."""
        ...


class GpuSettings(Protocol):
    """A profile's device, or a manifest's."""

    @property
    def properties(self) -> Mapping[str, PropertyValue]:
        """What is passed to `compile_model`."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    @property
    def prefill_chunk_tokens(self) -> int:
        """Prompt tokens per forward call."""
        ...


@dataclass(frozen=True)
class GpuMemory:
    """Memory of a model on a GPU that shares it with the machine, in bytes.

    Args:
        weights_bytes: As they lie in the package.
        fixed_bytes: Process, libraries, compiled kernels.
        cache_bytes_per_token: Keys and values of all layers.
        max_context_tokens: Tokens of a conversation that fills the context.
        prefill_chunk_tokens: Prompt tokens per pass.
        working_bytes: Activations and mask of one pass.
    """

    weights_bytes: int
    fixed_bytes: int
    cache_bytes_per_token: int
    max_context_tokens: int
    prefill_chunk_tokens: int
    working_bytes: int

    def resting_bytes(self, num_tokens: int) -> int:
        """Return what is held while a conversation of so many tokens waits."""
        cached = (num_tokens + _SPARE_TOKENS) * self.cache_bytes_per_token
        return self.weights_bytes + self.fixed_bytes + cached

    def peak_bytes(self, num_tokens: int) -> int:
        """Return the most that is held while a prompt of so many tokens is read.

        A chunk makes the cache of every layer outgrow its buffer, and the old buffers are let
        go only when the next pass begins: for a moment the cache is there twice.
        """
        before = max(num_tokens - self.prefill_chunk_tokens, 0)
        copied = before * self.cache_bytes_per_token
        return self.resting_bytes(num_tokens) + copied + self.working_bytes


@dataclass(frozen=True)
class GpuBuffer:
    """One allocation.

    Args:
        name: What it holds, with its measures.
        fixed_bytes: Its size without any context.
        bytes_per_token: What a token of context adds.
    """

    name: str
    fixed_bytes: int
    bytes_per_token: int

    def size_bytes(self, num_tokens: int) -> int:
        """Return its size at this context."""
        return self.fixed_bytes + num_tokens * self.bytes_per_token


def estimate_gpu_memory(
    shape: ModelShape, settings: GpuSettings, *, weights_bytes: int
) -> GpuMemory:
    """Estimate the memory of a model on a built-in GPU.

    Args:
        shape: The decoder's.
        settings: The GPU's, with the limits it will run with.
        weights_bytes: Size of the weights file.
    """
    chunk = min(settings.prefill_chunk_tokens, settings.max_context_tokens)
    values = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    activations = chunk * shape.hidden_size * _ROWS_ALIVE * 2
    # A mask is made from positions: as numbers, as truth, as what is added to the scores.
    masks = 2 * chunk * settings.max_context_tokens * _MASK_BYTES
    scores = 2 * chunk * settings.max_context_tokens * _scores_bytes(shape, settings.properties)
    return GpuMemory(
        weights_bytes=weights_bytes,
        fixed_bytes=_FIXED_BYTES,
        cache_bytes_per_token=round(values * _cache_value_bytes(settings.properties)),
        max_context_tokens=settings.max_context_tokens,
        prefill_chunk_tokens=chunk,
        working_bytes=activations + masks + scores,
    )


def list_gpu_buffers(
    shape: ModelShape, settings: GpuSettings, formats: WeightFormats
) -> tuple[GpuBuffer, ...]:
    """Return the largest single buffers of a model on a GPU: of each kind the largest.

    The cache is one variable per layer for keys and one for values, so it is never the first to
    reach the limit; attention that is taken apart is.

    Args:
        shape: The decoder's.
        settings: The GPU's.
        formats: Of embedding and output head.
    """
    chunk = min(settings.prefill_chunk_tokens, settings.max_context_tokens)
    value_bytes = max(_matrix_bytes(name, settings.properties) for name in _names_of(formats))
    row_bytes = round(shape.num_kv_heads * shape.head_dim * _cache_value_bytes(settings.properties))
    buffers = [
        GpuBuffer(
            f"embedding or output head, {shape.vocab_size:,} x {shape.hidden_size:,} values",
            shape.vocab_size * shape.hidden_size * value_bytes,
            0,
        ),
        GpuBuffer("keys or values of one layer", _SPARE_TOKENS * row_bytes, row_bytes),
        GpuBuffer(f"attention mask of {chunk:,} prompt tokens", 0, chunk * _MASK_BYTES),
    ]
    scores = _scores_bytes(shape, settings.properties)
    if scores:
        name = f"attention scores of {chunk:,} prompt tokens and {shape.num_heads:,} heads"
        buffers.append(GpuBuffer(name, 0, chunk * scores))
    return tuple(buffers)


def find_max_gpu_context(
    shape: ModelShape,
    settings: GpuSettings,
    formats: WeightFormats,
    *,
    limit_bytes: int = MAX_BUFFER_BYTES,
) -> int:
    """Return the longest context whose every buffer stays within the limit; 0 for none.

    Args:
        shape: The decoder's.
        settings: The GPU's; its own `max_context_tokens` does not count.
        formats: Of embedding and output head.
        limit_bytes: Most bytes of one buffer.
    """
    longest = MAX_CONTEXT_TOKENS
    for buffer in list_gpu_buffers(shape, settings, formats):
        room = limit_bytes - buffer.fixed_bytes
        if room < 0:
            return 0
        if buffer.bytes_per_token:
            longest = min(longest, room // buffer.bytes_per_token)
    return longest


def check_gpu_buffers(
    shape: ModelShape,
    settings: GpuSettings,
    formats: WeightFormats,
    *,
    limit_bytes: int = MAX_BUFFER_BYTES,
) -> str | None:
    """Refuse a model that needs a larger buffer than a GPU gives out.

    Args:
        shape: The decoder's.
        settings: The GPU's, with the limits it will run with.
        formats: Of embedding and output head.
        limit_bytes: The GPU's `GPU_DEVICE_MAX_ALLOC_MEM_SIZE`; by default what GPUs in Core
            Ultra processors have at least.

    Returns:
        A sentence about where it will not run although it runs on most machines, or None.

    Raises:
        ResourceError: A buffer is larger, and `GPU_ENABLE_LARGE_ALLOCATIONS` is not set.
    """
    if settings.properties.get("GPU_ENABLE_LARGE_ALLOCATIONS") is True:
        return None
    tokens = settings.max_context_tokens
    buffers = list_gpu_buffers(shape, settings, formats)
    largest = max(buffers, key=lambda buffer: buffer.size_bytes(tokens))
    size = largest.size_bytes(tokens)
    if size > limit_bytes:
        longest = find_max_gpu_context(shape, settings, formats, limit_bytes=limit_bytes)
        raise ResourceError(
            f"The GPU would need one buffer of {size:,} bytes at {tokens:,} tokens of context "
            f"({largest.name}), but gives out at most {limit_bytes:,} bytes at a time.",
            _advise(largest, longest),
            buffer=largest.name,
            needed_bytes=size,
            limit_bytes=limit_bytes,
            max_context_tokens=longest,
            device="GPU",
        )
    if size > WSL_BUFFER_BYTES:
        return (
            f"On a GPU inside WSL2, which gives out {format_bytes(WSL_BUFFER_BYTES)} at a time, "
            f"this package needs GPU_ENABLE_LARGE_ALLOCATIONS: {largest.name} take "
            f"{format_bytes(size)}"
        )
    return None


def find_why_attention_is_apart(
    shape: ModelShape, properties: Mapping[str, PropertyValue]
) -> str | None:
    """Return why a GPU holds all attention scores at once, or None where it need not.

    Args:
        shape: The decoder's.
        properties: The GPU's.
    """
    if properties.get("GPU_ENABLE_SDPA_OPTIMIZATION") is False:
        return "GPU_ENABLE_SDPA_OPTIMIZATION is false"
    if _computes_in_f32(properties):
        return "fused attention is for f16 only"
    if shape.head_dim not in _FUSED_HEAD_DIMS:
        return f"heads of {shape.head_dim} values; GPUs without XMX take 64, 80, … 256"
    return None


def _advise(largest: GpuBuffer, longest: int) -> str:
    """Return the ways out, for a person's own profile."""
    ways = []
    if not largest.bytes_per_token:
        ways.append("use a recipe with 8-bit embedding and head, such as int4-awq or int8")
    elif longest >= MIN_CONTEXT_TOKENS:
        ways.append(f"use --max-context-tokens {longest}, or the same for the GPU in a profile")
    if largest.bytes_per_token:
        ways.append("set a smaller prefill_chunk_tokens for the GPU in a profile of your own")
    ways.append("set GPU_ENABLE_LARGE_ALLOCATIONS = true there; it makes the GPU slower")
    return "\nor ".join(ways)


def _computes_in_f32(properties: Mapping[str, PropertyValue]) -> bool:
    is_exact = properties.get("EXECUTION_MODE_HINT") == "ACCURACY"
    return properties.get("INFERENCE_PRECISION_HINT", "f32" if is_exact else "f16") == "f32"


def _cache_value_bytes(properties: Mapping[str, PropertyValue]) -> float:
    default = "f32" if _computes_in_f32(properties) else "f16"
    return _CACHE_BYTES.get(str(properties.get("KV_CACHE_PRECISION", default)).lower(), 4.0)


def _scores_bytes(shape: ModelShape, properties: Mapping[str, PropertyValue]) -> int:
    """Return the bytes of attention scores per prompt token and token of context."""
    if find_why_attention_is_apart(shape, properties) is None:
        return 0
    return shape.num_heads * (4 if _computes_in_f32(properties) else 2)


def _names_of(formats: WeightFormats) -> tuple[str, str]:
    return formats.embedding, formats.head


def _matrix_bytes(name: str, properties: Mapping[str, PropertyValue]) -> int:
    """Return the bytes of one value; 16 bits are widened where f32 is computed."""
    if name == "int8":
        return 1
    return 4 if _computes_in_f32(properties) else 2
