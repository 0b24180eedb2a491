"""What a profile says of the ONNX form of a package: limits, and how exactly to compute.

OpenVINO's devices have settings of their own (`device.py`). One set serves every execution
provider here; which provider runs is decided where the package runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, cast

from qwen_edge.profiles.device import MAX_CONTEXT_TOKENS, MIN_CONTEXT_TOKENS
from qwen_edge.profiles.table import Setting, TableReader, merge_reasons

Format = Literal["openvino", "onnx", "both"]
FORMATS: tuple[Format, ...] = ("openvino", "onnx", "both")

ACCURACY_LEVELS = (1, 4)
_DEFAULTS = {
    "max_context_tokens": Setting(
        32_768,
        "Qwen3 was trained for 32,768 tokens of input and 40,960 in all; the cache is float32 "
        "(288 KiB per token, Qwen3-4B) and grows with the conversation",
    ),
    "prefill_chunk_tokens": Setting(
        512, "measured: the same speed per token from 64 tokens up; larger only raises peak memory"
    ),
    "accuracy_level": Setting(
        4,
        "measured on 2 cores: int8 activations in the weights' groups decode 1.8 times and prefill "
        "1.2 times as fast as float32 (level 1)",
    ),
}


@dataclass(frozen=True)
class OnnxSettings:
    """Settings of the ONNX form.

    Args:
        max_context_tokens: Most tokens of a conversation; positions the rotary tables hold.
        prefill_chunk_tokens: Prompt tokens per call.
        accuracy_level: MatMulNBits': 1 for float32 activations, 4 for int8 in blocks.
        reasons: Key to reason.
    """

    max_context_tokens: int = cast("int", _DEFAULTS["max_context_tokens"].value)
    prefill_chunk_tokens: int = cast("int", _DEFAULTS["prefill_chunk_tokens"].value)
    accuracy_level: Literal[1, 4] = 4
    reasons: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType(merge_reasons(_DEFAULTS))
    )

    def to_json(self) -> dict[str, object]:
        """Return every value with its reason, for programs."""
        return {
            key: {"value": getattr(self, key), "reason": self.reasons[key]} for key in _DEFAULTS
        }


def read_onnx_settings(reader: TableReader, inherited: Sequence[OnnxSettings]) -> OnnxSettings:
    """Read a profile's `[onnx]` table.

    Args:
        reader: Of the whole profile; problems go to its list.
        inherited: The parents' settings; the first is the base.

    Returns:
        The base, with what the table says instead.
    """
    base = inherited[0] if inherited else OnnxSettings()
    table = reader.table.get("onnx")
    if table is None:
        return base
    if not isinstance(table, dict):
        reader.problems.append("onnx is no table; write [onnx] and its keys below")
        return base
    inner = TableReader(table, "onnx: ", reader.default_reason, reader.problems)
    inner.check_keys(_DEFAULTS)
    values = {key: getattr(base, key) for key in _DEFAULTS}
    reasons = dict(base.reasons)
    for key in _DEFAULTS:
        setting = inner.setting(key, int)
        if setting is None:
            continue
        problem = _find_problem(key, cast("int", setting.value))
        if problem:
            reader.problems.append(f"onnx: {problem}")
            continue
        values[key], reasons[key] = setting.value, setting.reason
    return OnnxSettings(**values, reasons=MappingProxyType(reasons))


def _find_problem(key: str, value: int) -> str | None:
    if key == "accuracy_level":
        known = " or ".join(map(str, ACCURACY_LEVELS))
        return None if value in ACCURACY_LEVELS else f"accuracy_level is {value}; expected {known}"
    least = MIN_CONTEXT_TOKENS if key == "max_context_tokens" else 1
    if least <= value <= MAX_CONTEXT_TOKENS:
        return None
    return f"{key} is {value:,}; expected {least:,} to {MAX_CONTEXT_TOKENS:,}"
