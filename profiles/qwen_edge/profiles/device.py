"""How one device runs a model: limits and engine settings, checked, each with its reason.

Owns the ranges and the contradictions between values. It does not know where the values come
from (`device_tables.py` reads them) nor which devices are present (`choose.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from qwen_edge.errors import did_you_mean
from qwen_edge.profiles.properties import DEVICES, PropertyValue, find_property_problem
from qwen_edge.profiles.table import refuse_problems

DeviceName = Literal["CPU", "GPU", "NPU"]

MIN_CONTEXT_TOKENS = 256
MAX_CONTEXT_TOKENS = 262_144  # the longest of the family: Qwen3-4B-Instruct-2507
NPU_LENGTH_STEP = 64  # the NPU plugin rounds lengths up to this (npuw/llm_compiled_model.cpp)
MAX_NPU_LENGTH = 32_768  # prefix cache of the NPU plugin: 128 blocks of 256 tokens

LIMITS = ("max_context_tokens", "prefill_chunk_tokens", "max_prompt_tokens", "min_response_tokens")
FIX = "correct the file; `qwen-edge profiles show core-ultra` prints a complete profile"


@dataclass(frozen=True)
class DeviceProfile:
    """How one device runs a model.

    Args:
        device: OpenVINO's device type.
        properties: What is passed to `compile_model`, by OpenVINO's names.
        max_context_tokens: Most tokens of prompt and answer together.
        prefill_chunk_tokens: Prompt tokens per forward call. On an NPU the whole prompt, which
            the plugin cuts up itself.
        max_prompt_tokens: NPU only, else None: the longest prompt.
        min_response_tokens: NPU only, else None: room kept for the answer.
        reasons: Field or property name → reason; "device" → why it is at this place.
        measured: The same names → True where a run of this project on this kind of device
            stands behind the value, False where only documents and published figures do. A
            name that nobody said it of is absent.
        note: What else is to be known, such as what is left to the engine and why.

    Raises:
        UsageError: A value is out of range or contradicts another; all problems in one error.
    """

    device: DeviceName
    properties: Mapping[str, PropertyValue]
    max_context_tokens: int
    prefill_chunk_tokens: int
    max_prompt_tokens: int | None = None
    min_response_tokens: int | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, bool] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        for key in ("properties", "reasons", "measured"):
            object.__setattr__(self, key, MappingProxyType(dict(getattr(self, key))))
        refuse_problems(f"Device {self.device!r}", _device_problems(self), FIX)

    def to_manifest(self) -> dict[str, object]:
        """Return the values without reasons, as a package manifest stores them."""
        return {
            "device": self.device,
            "properties": dict(self.properties),
            "max_context_tokens": self.max_context_tokens,
            "max_prompt_tokens": self.max_prompt_tokens,
            "min_response_tokens": self.min_response_tokens,
            "prefill_chunk_tokens": self.prefill_chunk_tokens,
        }

    def to_json(self) -> dict[str, object]:
        """Return every value with its reason, for programs."""
        limits = {key: getattr(self, key) for key in LIMITS}
        return {
            "device": self.device,
            "reason": self.reasons.get("device", ""),
            "measured": self.measured.get("device"),
            "note": self.note,
            "settings": self._with_reasons({k: v for k, v in limits.items() if v is not None}),
            "properties": self._with_reasons(self.properties),
        }

    def _with_reasons(self, values: Mapping[str, object]) -> dict[str, dict[str, object]]:
        return {
            key: {
                "value": value,
                "reason": self.reasons.get(key, ""),
                "measured": self.measured.get(key),
            }
            for key, value in values.items()
        }


def _device_problems(entry: DeviceProfile) -> list[str]:
    """Return every range and contradiction problem of one device."""
    if entry.device not in DEVICES:
        hint = did_you_mean(str(entry.device).upper(), DEVICES)
        return [f"device is {entry.device!r}; expected one of {', '.join(DEVICES)}.{hint}"]
    problems = []
    if entry.device == "NPU":
        problems += _npu_problems(entry)
    elif not MIN_CONTEXT_TOKENS <= entry.max_context_tokens <= MAX_CONTEXT_TOKENS:
        problems.append(
            f"max_context_tokens is {entry.max_context_tokens:,}; "
            f"expected {MIN_CONTEXT_TOKENS:,} to {MAX_CONTEXT_TOKENS:,}"
        )
    elif not 1 <= entry.prefill_chunk_tokens <= entry.max_context_tokens:
        problems.append(
            f"prefill_chunk_tokens is {entry.prefill_chunk_tokens:,}; "
            f"expected 1 to max_context_tokens, {entry.max_context_tokens:,}"
        )
    for name, value in entry.properties.items():
        problem = find_property_problem(entry.device, name, value)
        if problem is not None:
            problems.append(problem)
    return problems


def _npu_problems(entry: DeviceProfile) -> list[str]:
    prompt, response = entry.max_prompt_tokens, entry.min_response_tokens
    if prompt is None or response is None:
        return ["an NPU needs max_prompt_tokens and min_response_tokens"]
    problems = [
        f"{key} is {value:,}; expected a multiple of {NPU_LENGTH_STEP} "
        f"from {NPU_LENGTH_STEP} to {MAX_NPU_LENGTH:,}"
        for key, value in (("max_prompt_tokens", prompt), ("min_response_tokens", response))
        if not NPU_LENGTH_STEP <= value <= MAX_NPU_LENGTH or value % NPU_LENGTH_STEP
    ]
    if not problems and entry.max_context_tokens != prompt + response:
        problems.append(
            f"max_context_tokens is {entry.max_context_tokens:,}; "
            f"expected {prompt:,} + {response:,} = {prompt + response:,}"
        )
    chunk = entry.properties.get("NPUW_LLM_PREFILL_CHUNK_SIZE")
    if isinstance(chunk, int) and 0 < chunk < prompt and prompt % chunk:
        problems.append(
            f"max_prompt_tokens is {prompt:,}; expected a multiple of "
            f"NPUW_LLM_PREFILL_CHUNK_SIZE, {chunk:,}"
        )
    return problems
