"""The OpenVINO compile properties that a profile may set, per device.

Data: name, type and range of each, so that a slip of the pen is found when a file is read and
not minutes later inside a driver. It does not know which value is best (`catalog/*.toml`).

Source: OpenVINO 2026.4.1: src/plugins/intel_cpu/src/config.h, src/plugins/intel_gpu/include/
intel_gpu/runtime/options.inl and src/inference/include/openvino/runtime/intel_gpu/properties.hpp,
src/plugins/intel_npu/src/al/include/intel_npu/config/npuw_option_defs.inc and
src/plugins/intel_npu/README.md. tests/unit/test_gpu_profile.py compares names and values with the
engine that is installed; no device is needed for that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qwen_edge.errors import did_you_mean

PropertyValue = str | int | bool

KERNELS = "QWEN_EDGE_KERNELS"
"""Not the engine's but ours: what computes products with compressed weights on a CPU."""
ENGINE_KERNELS = "engine"
"""The value of `KERNELS` that leaves them to the engine."""
OWN_KERNELS = ("amx", "avx512-vnni", "avx2-vnni", "avx2")
"""The values of `KERNELS` that name our own, best first; "auto" takes the first that runs."""


@dataclass(frozen=True)
class PropertyRule:
    """What one property takes.

    Args:
        expected: The expectation in words, for messages.
        is_allowed: True for a legal value.
        names: All legal values where they can be listed.
    """

    expected: str
    is_allowed: Callable[[PropertyValue], bool]
    names: tuple[str, ...] = ()


def _one_of(*names: str) -> PropertyRule:
    return PropertyRule(f"one of {', '.join(names)}", lambda value: value in names, names)


def _whole(lowest: int, highest: int) -> PropertyRule:
    return PropertyRule(
        f"a whole number from {lowest:,} to {highest:,}",
        lambda value: type(value) is int and lowest <= value <= highest,
    )


def _power_of_two(lowest: int, highest: int) -> PropertyRule:
    return PropertyRule(
        f"a power of two from {lowest:,} to {highest:,}",
        lambda value: type(value) is int and lowest <= value <= highest and not value & (value - 1),
    )


def _is_positive_decimal(value: PropertyValue) -> bool:
    try:
        return isinstance(value, str) and 0 < float(value) < float("inf")
    except ValueError:
        return False


_FLAG = PropertyRule("true or false", lambda value: isinstance(value, bool))
_YES_NO = _one_of("YES", "NO")
_HINT = _one_of("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")
_MODE = _one_of("PERFORMANCE", "ACCURACY")
_DECIMAL = PropertyRule('a number above 0 in quotes, for example "8.0"', _is_positive_decimal)
_QUANTISED_GROUP = _whole(0, 65_536)
_PRIORITY = _one_of("LOW", "MEDIUM", "HIGH")
_CACHE_CPU = _one_of("u4", "u8", "bf16", "f16", "f32")

KNOWN_PROPERTIES: Mapping[str, Mapping[str, PropertyRule]] = MappingProxyType(
    {
        "CPU": MappingProxyType(
            {
                "PERFORMANCE_HINT": _HINT,
                "EXECUTION_MODE_HINT": _MODE,
                "INFERENCE_PRECISION_HINT": _one_of("f32", "bf16", "f16"),
                "INFERENCE_NUM_THREADS": _whole(1, 1_024),
                "NUM_STREAMS": _whole(1, 1_024),
                "KV_CACHE_PRECISION": _CACHE_CPU,
                "KEY_CACHE_PRECISION": _CACHE_CPU,
                "VALUE_CACHE_PRECISION": _CACHE_CPU,
                "KEY_CACHE_GROUP_SIZE": _QUANTISED_GROUP,
                "VALUE_CACHE_GROUP_SIZE": _QUANTISED_GROUP,
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": _QUANTISED_GROUP,
                "SCHEDULING_CORE_TYPE": _one_of("ANY_CORE", "PCORE_ONLY", "ECORE_ONLY"),
                "ENABLE_HYPER_THREADING": _FLAG,
                "ENABLE_CPU_PINNING": _FLAG,
                "ENABLE_CPU_RESERVATION": _FLAG,
                KERNELS: _one_of("auto", ENGINE_KERNELS, *OWN_KERNELS),
            }
        ),
        "GPU": MappingProxyType(
            {
                "PERFORMANCE_HINT": _HINT,
                "EXECUTION_MODE_HINT": _MODE,
                "INFERENCE_PRECISION_HINT": _one_of("f32", "f16"),
                "KV_CACHE_PRECISION": _one_of("u4", "u8", "i8", "f16"),
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": _QUANTISED_GROUP,
                "ACTIVATIONS_SCALE_FACTOR": _DECIMAL,
                "MODEL_PRIORITY": _PRIORITY,
                "GPU_ENABLE_LARGE_ALLOCATIONS": _FLAG,
                "GPU_ENABLE_SDPA_OPTIMIZATION": _FLAG,
                "GPU_ENABLE_KERNELS_REUSE": _FLAG,
                "GPU_QUEUE_PRIORITY": _PRIORITY,
                "GPU_QUEUE_THROTTLE": _PRIORITY,
                "GPU_HOST_TASK_PRIORITY": _PRIORITY,
            }
        ),
        "NPU": MappingProxyType(
            {
                "NPU_USE_NPUW": _YES_NO,
                "NPU_TURBO": _YES_NO,
                "NPU_COMPILER_TYPE": _one_of("PREFER_PLUGIN", "PLUGIN", "DRIVER"),
                "NPUW_LLM": _YES_NO,
                "NPUW_DEVICES": _one_of("NPU", "NPU,CPU", "CPU"),
                "NPUW_LLM_MAX_PROMPT_LEN": _whole(64, 32_768),
                "NPUW_LLM_MIN_RESPONSE_LEN": _whole(64, 32_768),
                "NPUW_LLM_PREFILL_CHUNK_SIZE": _power_of_two(64, 8_192),
                "NPUW_LLM_PREFILL_HINT": _one_of("DYNAMIC", "STATIC"),
                "NPUW_LLM_GENERATE_HINT": _one_of("FAST_COMPILE", "BEST_PERF"),
                "NPUW_LLM_GENERATE_PYRAMID": _YES_NO,
                "NPUW_LLM_OPTIMIZE_V_TENSORS": _YES_NO,
                "NPUW_LLM_SHARED_HEAD": _YES_NO,
                "NPUW_LLM_CACHE_ROPE": _YES_NO,
                "NPUW_LLM_ENABLE_PREFIX_CACHING": _YES_NO,
                "NPUW_LLM_ENABLE_CONTINUOUS_PREFILL": _YES_NO,
                "NPUW_LLM_PREFILL_ATTENTION_HINT": _one_of("STATIC", "DYNAMIC", "PYRAMID", "HFA"),
                "NPUW_LLM_GENERATE_ATTENTION_HINT": _one_of("STATIC", "DYNAMIC", "PYRAMID", "HFA"),
            }
        ),
    }
)

DEVICES = tuple(KNOWN_PROPERTIES)

# Names a file may not set, because qwen-edge sets them from something else.
SET_ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "NPU_USE_NPUW": "it is always YES for a language model; leave it out",
        "NPUW_LLM": "it is always YES for a language model; leave it out",
        "NPUW_LLM_MAX_PROMPT_LEN": "write max_prompt_tokens instead",
        "NPUW_LLM_MIN_RESPONSE_LEN": "write min_response_tokens instead",
        "MAX_PROMPT_LEN": "write max_prompt_tokens instead",
        "MIN_RESPONSE_LEN": "write min_response_tokens instead",
        "CACHE_DIR": "a path does not belong into a package; choose it when the model is loaded",
    }
)


def find_property_problem(device: str, name: str, value: PropertyValue) -> str | None:
    """Return what is wrong with one property of a device, or None.

    Args:
        device: "CPU", "GPU" or "NPU".
        name: OpenVINO's name of the property.
        value: What is to be passed.
    """
    known = KNOWN_PROPERTIES[device]
    rule = known.get(name)
    if rule is None:
        elsewhere = [other for other in DEVICES if name in KNOWN_PROPERTIES[other]]
        if elsewhere:
            return f"{name} is not a property of {device}; it is one of {', '.join(elsewhere)}"
        hint = did_you_mean(name.upper(), known) or f" Known: {', '.join(sorted(known))}."
        return f"unknown {device} property {name!r}.{hint}"
    if not rule.is_allowed(value):
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        return f"{name} is {shown}; expected {rule.expected}"
    return None
