"""How much memory a package needs on a device, and whether there is enough before it is loaded.

Estimates, from sizes in the manifest and factors measured on the full-size model. It asks no
operating system and no engine.
"""

import logging
from dataclasses import dataclass
from typing import Literal

from qwen_edge.errors import ResourceError, format_bytes
from qwen_edge.runtime.manifest import MODEL_BIN, MODEL_ONNX_DATA, DeviceSettings, Manifest

_LOGGER = logging.getLogger(__name__)
# Qwen3-4B int4, CPU: 2.6 GB private memory for 2.3 GB of weights; the file's own pages come on
# top but are the system's to take back.
_WORKING_FACTOR = 1.15
# Weights of 16 bits computed in f32: the CPU plugin widens them and repacks the result. Measured:
# 5.1 GB of private memory for the 1.19 GB of Qwen3-0.6B.
_WIDENED_FACTOR = 4.3
# The same of ONNX Runtime, by (portable, 16 bits). Measured, at the peak: 2.5 GB for the 2.34 GB of
# Qwen3-4B int4; of Qwen3-0.6B 5.3 GB for 1.19 GB of fp16, and in portable form 3.0 GB for as much,
# 1.0 GB for 0.61 GB of int8.
_ONNX_FACTORS = {
    (False, False): _WORKING_FACTOR,
    (False, True): 4.5,
    (True, False): 1.7,
    (True, True): 2.6,
}
_ONNX_CACHE_BYTES = 4.0  # the cache that passes in and out of the model is float32
_FIRST_TOKENS = 1024  # a model that has no room for this much conversation is of no use
# Bytes of one cached value. u8 measured: 85 KB per token of Qwen3-4B's 73,728 values.
_CACHE_BYTES = {"u4": 0.65, "u8": 1.15, "i8": 1.15, "f16": 2.0, "bf16": 2.0, "f32": 4.0}
_DEFAULT_CACHE_PRECISION = {"CPU": "u8", "GPU": "f16", "NPU": "f16"}


@dataclass(frozen=True)
class MemoryEstimate:
    """What loading and using a package takes, in bytes.

    Args:
        model_bytes: Weights as the engine keeps them.
        cache_bytes_per_token: KV cache of one token, all layers.
        min_cache_tokens: Tokens the cache must hold for the model to be of use.
        max_cache_tokens: Tokens of the whole context.
    """

    model_bytes: int
    cache_bytes_per_token: int
    min_cache_tokens: int
    max_cache_tokens: int

    @property
    def min_bytes(self) -> int:
        """Below this much available memory, loading makes no sense."""
        return self.model_bytes + self.min_cache_tokens * self.cache_bytes_per_token

    @property
    def max_bytes(self) -> int:
        """What a conversation that fills the context takes."""
        return self.model_bytes + self.max_cache_tokens * self.cache_bytes_per_token


def estimate_memory(
    manifest: Manifest,
    settings: DeviceSettings,
    fmt: Literal["openvino", "onnx"] = "openvino",
) -> MemoryEstimate:
    """Estimate the memory of a package on one device.

    Args:
        manifest: Of a package that holds the format.
        settings: The device's, with the limits it will run with.
        fmt: Which of the package's models is loaded.
    """
    model = manifest.model
    if fmt == "openvino":
        name, factor = MODEL_BIN, _openvino_factor(manifest, settings)
        value_bytes = _openvino_cache_bytes(settings)
    else:
        is_portable = manifest.onnx is not None and manifest.onnx.is_portable
        name, factor = (
            MODEL_ONNX_DATA,
            _ONNX_FACTORS[is_portable, manifest.recipe.weights == "fp16"],
        )
        # Standard operators write a step's cache anew, beside the old one.
        value_bytes = _ONNX_CACHE_BYTES * (2 if is_portable else 1)
    values = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    max_tokens = settings.max_context_tokens
    # A device of fixed shapes takes the whole context's memory at once.
    is_static = settings.max_prompt_tokens is not None
    return MemoryEstimate(
        model_bytes=round(manifest.files[name].size_bytes * factor),
        cache_bytes_per_token=round(values * value_bytes),
        min_cache_tokens=max_tokens if is_static else min(max_tokens, _FIRST_TOKENS),
        max_cache_tokens=max_tokens,
    )


def _openvino_cache_bytes(settings: DeviceSettings) -> float:
    """Return the bytes of one cached value, by the properties that decide its type."""
    default = _DEFAULT_CACHE_PRECISION.get(settings.device, "f16")
    precision = str(settings.properties.get("KV_CACHE_PRECISION", default)).lower()
    if settings.properties.get("EXECUTION_MODE_HINT") == "ACCURACY":
        precision = "f32"
    return _CACHE_BYTES.get(precision, 4.0)


def _openvino_factor(manifest: Manifest, settings: DeviceSettings) -> float:
    """Return how many bytes OpenVINO keeps for a byte of weights."""
    # Without a hint the engine may compute in bf16, which needs less; the larger figure is safe.
    hint = str(settings.properties.get("INFERENCE_PRECISION_HINT", "f32")).lower()
    is_widened = settings.device == "CPU" and manifest.recipe.weights == "fp16" and hint == "f32"
    return _WIDENED_FACTOR if is_widened else _WORKING_FACTOR


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
        cache_bytes = estimate.min_cache_tokens * estimate.cache_bytes_per_token
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
    if available_bytes < estimate.max_bytes:
        room = (available_bytes - estimate.model_bytes) // estimate.cache_bytes_per_token
        _LOGGER.warning(
            "Memory holds a conversation of about %s tokens; the context of %s takes %s",
            f"{room:,}",
            f"{estimate.max_cache_tokens:,}",
            format_bytes(estimate.max_bytes),
        )
