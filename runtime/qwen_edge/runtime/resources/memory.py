"""How much memory a model needs on a device, and whether there is enough before it is loaded.

Estimates, from the model's sizes and factors measured on models of three sizes; docs/resources.md
has the formulas with their figures. It asks no operating system and no engine. What a machine
makes of it is in `plan.py`.
"""

import logging
from dataclasses import dataclass

from qwen_edge.errors import ResourceError, format_bytes
from qwen_edge.profiles.gpu_memory import estimate_gpu_memory
from qwen_edge.runtime.kernels import are_used
from qwen_edge.runtime.manifest import (
    MODEL_BIN,
    MODEL_ONNX_DATA,
    TOKENIZER_JSON,
    DeviceSettings,
    FormatName,
    Manifest,
)
from qwen_edge.runtime.recipe_facts import PlannedWeights

_LOGGER = logging.getLogger(__name__)
# Python, the engine's libraries and the command line; then what a byte of tokenizer.json becomes.
PROCESS_BYTES = 30_000_000
PER_TOKENIZER_BYTE = 10.0
# The CPU plugin keeps a rearranged copy of all weights; the file's own pages come on top, but are
# the system's to take back. Scales of 4-bit groups are kept widened besides. Measured, bytes held
# per byte of weights: int4 in groups of 128 1.04, 1.06 and 1.08 (Qwen3-0.6B, -1.7B, -4B), int8 1.
CPU_FACTORS = {"int4": 1.08, "int8": 1.0, "fp16": 1.0}
# Weights of 16 bits computed in f32: the CPU plugin widens them and repacks the result. Measured:
# 5.1 GB of private memory for the 1.19 GB of Qwen3-0.6B, and 5.6 GB once a prompt was read.
WIDENED_FACTOR = 4.5
# Activations of a prompt's chunk and logits, per token of the chunk and number of the hidden
# state. Measured with 512 tokens: 110 to 130, 246 and 280 MB (Qwen3-0.6B, -1.7B, -4B) after calls
# of every size, and about half where the first question did not wait for these.
WORKING_BYTES = 165
# With kernels of our own: 40, 73 and 133 MB for a prompt of 403 tokens (Qwen3-0.6B, -1.7B, -4B).
OWN_WORKING_BYTES = 68
# The same of ONNX Runtime, by (portable, 16 bits). Measured, at the peak: 2.5 GB for the 2.34 GB of
# Qwen3-4B int4; of Qwen3-0.6B 5.3 GB for 1.19 GB of fp16, and in portable form 3.0 GB for as much,
# 1.0 GB for 0.61 GB of int8.
ONNX_FACTORS = {
    (False, False): 1.15,
    (False, True): 4.5,
    (True, False): 1.7,
    (True, True): 2.6,
}
# The NPU plugin's pipeline, on the CPU: 7.0 GB of private memory for 2.26 GB, while it compiles.
NPU_FACTOR = 3.1
_ONNX_CACHE_BYTES = 4.0  # the cache that passes in and out of the model is float32
_FIRST_TOKENS = 1024  # a model that has no room for this much conversation is of no use
# Bytes of one cached value. u8 measured: 85 KB per token of Qwen3-4B's 73,728 values.
CACHE_BYTES = {"u4": 0.65, "u8": 1.15, "i8": 1.15, "f16": 2.0, "bf16": 2.0, "f32": 4.0}
_DEFAULT_CACHE_PRECISION = {"CPU": "u8", "GPU": "f16", "NPU": "f16"}
# After the model and the first conversation this much should be left for other programs.
COMFORT_BYTES = 1_000_000_000


@dataclass(frozen=True)
class ModelSize:
    """What a model's memory follows from: of a package, or of one that is still to be made.

    Args:
        format: Which engine's model.
        weights_bytes: Size of the weights file.
        weights: How the matrices of the layers are stored.
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Values of one head.
        vocab_size: Rows of the embedding.
        tokenizer_bytes: Size of tokenizer.json.
        is_portable: ONNX only: standard operators.
        is_for_own_kernels: Whether kernels of ours take the weights as they are stored.
    """

    format: FormatName
    weights_bytes: int
    weights: PlannedWeights
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tokenizer_bytes: int
    is_portable: bool = False
    is_for_own_kernels: bool = True

    @property
    def cached_values_per_token(self) -> int:
        """Numbers of the KV cache of one token, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class MemoryEstimate:
    """What loading and using a package takes, in bytes.

    Args:
        model_bytes: Weights as the engine keeps them, and what computing takes besides.
        cache_bytes_per_token: KV cache of one token, all layers.
        min_cache_tokens: Tokens the cache must hold for the model to be of use.
        max_cache_tokens: Tokens of the whole context.
        process_bytes: Program and tokenizer. On top of the others, which are about what is
            still to be taken once these are there.
        cache_copies: How often the cache is there while it grows.
        mapped_bytes: Of `model_bytes`, what are pages of the model's file: needed to be fast, but
            the system can take them back, and other programs share them.
    """

    model_bytes: int
    cache_bytes_per_token: int
    min_cache_tokens: int
    max_cache_tokens: int
    process_bytes: int = 0
    cache_copies: int = 1
    mapped_bytes: int = 0

    def bytes_at(self, num_tokens: int) -> int:
        """Return what a conversation of so many tokens takes, with the model."""
        return self.model_bytes + num_tokens * self.cache_bytes_per_token * self.cache_copies

    def private_bytes_at(self, num_tokens: int) -> int:
        """Return what of it is the program's own, with the program itself."""
        return self.bytes_at(num_tokens) + self.process_bytes - self.mapped_bytes

    @property
    def min_bytes(self) -> int:
        """Below this much available memory, loading makes no sense."""
        return self.bytes_at(self.min_cache_tokens)

    @property
    def max_bytes(self) -> int:
        """What a conversation that fills the context takes."""
        return self.bytes_at(self.max_cache_tokens)

    def fitting_tokens(self, available_bytes: int | None) -> int:
        """Return the largest context that fits, 0 where not even the model does.

        Args:
            available_bytes: What can be had without swapping; None, unknown, counts as enough.
        """
        if available_bytes is None or available_bytes >= self.max_bytes:
            return self.max_cache_tokens
        if available_bytes < self.min_bytes:
            return 0
        per_token = self.cache_bytes_per_token * self.cache_copies
        return (available_bytes - self.model_bytes) // per_token

    def find_notes(self, available_bytes: int | None) -> tuple[str, ...]:
        """Return what does not fit comfortably, one sentence each, where the model fits.

        Args:
            available_bytes: As for `fitting_tokens`.
        """
        if available_bytes is None:
            return ()
        notes = []
        if available_bytes < self.max_bytes:
            notes.append(
                f"Memory holds a conversation of about {self.fitting_tokens(available_bytes):,} "
                f"tokens; the context of {self.max_cache_tokens:,} takes "
                f"{format_bytes(self.max_bytes)}"
            )
        left = available_bytes - self.min_bytes
        if 0 <= left < min(COMFORT_BYTES, self.min_bytes):
            notes.append(
                f"Only {format_bytes(left)} of memory are left beside the model for all other "
                "programs; the machine may become slow"
            )
        return tuple(notes)


def size_model(manifest: Manifest, fmt: FormatName = "openvino") -> ModelSize:
    """Return the sizes of one of a package's models.

    Args:
        manifest: Of a package that holds the format.
        fmt: Which of its models.
    """
    model = manifest.model
    tokenizer = manifest.files.get(TOKENIZER_JSON)
    return ModelSize(
        format=fmt,
        weights_bytes=manifest.files[
            MODEL_BIN if fmt == "openvino" else MODEL_ONNX_DATA
        ].size_bytes,
        weights=manifest.recipe.planned_weights,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        tokenizer_bytes=0 if tokenizer is None else tokenizer.size_bytes,
        is_portable=fmt == "onnx" and manifest.onnx is not None and manifest.onnx.is_portable,
        is_for_own_kernels=manifest.recipe.is_for_own_kernels,
    )


def estimate_memory(
    manifest: Manifest, settings: DeviceSettings, fmt: FormatName = "openvino"
) -> MemoryEstimate:
    """Estimate the memory of a package on one device.

    Args:
        manifest: Of a package that holds the format.
        settings: The device's, with the limits it will run with.
        fmt: Which of the package's models is loaded.
    """
    return estimate_size(size_model(manifest, fmt), settings)


def estimate_size(size: ModelSize, settings: DeviceSettings) -> MemoryEstimate:
    """Estimate the memory of a model on one device.

    Args:
        size: The model's.
        settings: The device's, with the limits it will run with.
    """
    model_bytes, value_bytes, copies = _engine_bytes(size, settings)
    max_tokens = settings.max_context_tokens
    # A device of fixed shapes takes the whole context's memory at once.
    is_static = settings.max_prompt_tokens is not None
    # Figures of ONNX Runtime and of the GPU are of whole processes.
    is_whole = size.format == "onnx" or settings.device == "GPU"
    process_bytes = PROCESS_BYTES + round(PER_TOKENIZER_BYTE * size.tokenizer_bytes)
    return MemoryEstimate(
        model_bytes=round(model_bytes),
        cache_bytes_per_token=round(size.cached_values_per_token * value_bytes),
        min_cache_tokens=max_tokens if is_static else min(max_tokens, _FIRST_TOKENS),
        max_cache_tokens=max_tokens,
        process_bytes=0 if is_whole else process_bytes,
        cache_copies=copies,
        mapped_bytes=size.weights_bytes if _reads_file(size, settings) else 0,
    )


def _reads_file(size: ModelSize, settings: DeviceSettings) -> bool:
    """Whether weights are used where the file is mapped, by kernels of our own."""
    is_cpu = size.format == "openvino" and settings.device == "CPU"
    is_taken = size.weights != "fp16" and size.is_for_own_kernels
    return is_cpu and is_taken and are_used(settings.properties)


def _engine_bytes(size: ModelSize, settings: DeviceSettings) -> tuple[float, float, int]:
    """Return an engine's bytes without the cache, those of a cached value, and its copies."""
    if size.format == "onnx":
        factor = ONNX_FACTORS[size.is_portable, size.weights == "fp16"]
        # Standard operators write a step's cache anew, beside the old one.
        return factor * size.weights_bytes, _ONNX_CACHE_BYTES * (2 if size.is_portable else 1), 1
    value_bytes = _openvino_cache_bytes(settings)
    if settings.device == "GPU":
        gpu = estimate_gpu_memory(size, settings, weights_bytes=size.weights_bytes)
        return gpu.resting_bytes(0) + gpu.working_bytes, value_bytes, 2
    if settings.device == "NPU":
        return NPU_FACTOR * size.weights_bytes, value_bytes, 1
    # Without a hint the engine may compute in bf16, which needs less; the larger figure is safe.
    hint = str(settings.properties.get("INFERENCE_PRECISION_HINT", "f32")).lower()
    is_widened = size.weights == "fp16" and hint == "f32"
    factor = WIDENED_FACTOR if is_widened else CPU_FACTORS[size.weights]
    if _reads_file(size, settings):
        factor = 1.0
    per_number = OWN_WORKING_BYTES if _reads_file(size, settings) else WORKING_BYTES
    working = per_number * settings.prefill_chunk_tokens * size.hidden_size
    return factor * size.weights_bytes + working, value_bytes, 1


def _openvino_cache_bytes(settings: DeviceSettings) -> float:
    """Return the bytes of one cached value, by the properties that decide its type."""
    default = _DEFAULT_CACHE_PRECISION.get(settings.device, "f16")
    precision = str(settings.properties.get("KV_CACHE_PRECISION", default)).lower()
    if settings.properties.get("EXECUTION_MODE_HINT") == "ACCURACY":
        precision = "f32"
    return CACHE_BYTES.get(precision, 4.0)


def check_memory(estimate: MemoryEstimate, available_bytes: int | None, device: str) -> None:
    """Refuse a model for which memory cannot suffice; warn where it may run out later.

    Args:
        estimate: What it takes.
        available_bytes: What can be had without swapping; None, unknown, is never refused.
        device: For messages.

    Raises:
        ResourceError: With both figures and their parts.
    """
    if available_bytes is None:
        return
    if available_bytes < estimate.min_bytes:
        cache_bytes = estimate.min_bytes - estimate.model_bytes
        raise ResourceError(
            f"Running this model on {device} takes about {format_bytes(estimate.min_bytes)} of "
            f"memory (model {format_bytes(estimate.model_bytes)}, cache of "
            f"{estimate.min_cache_tokens:,} tokens {format_bytes(cache_bytes)}), but "
            f"{format_bytes(available_bytes)} are available.",
            "close other programs, or use a package of fewer bits or of a smaller model.",
            needed_bytes=estimate.min_bytes,
            available_bytes=available_bytes,
            device=device,
        )
    for note in estimate.find_notes(available_bytes):
        _LOGGER.warning("%s", note)
