"""Rotary position embedding as a config.json states it, and the frequencies it means.

Owns the reading of `rope_parameters` (transformers 5) and of `rope_scaling` with `rope_theta`
(transformers 4), and the arithmetic of the four kinds that do not depend on the length of the
text: default, linear, YaRN and Llama 3. Needs numpy only; it knows nothing of OpenVINO and of
files. Read `decoder.py` next: it holds the other facts of an architecture.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import CheckpointError, UnsupportedArchitectureError
from qwen_edge.export.config_fields import read_float, read_int, read_optional_float, shown

ROPE_KINDS = ("default", "linear", "yarn", "llama3")

# Bounds far outside every published model: they only stop a hostile or broken config.
_MAX_THETA = 1e12
_MAX_FACTOR = 1e6
_MAX_POSITIONS = 1 << 26


@dataclass(frozen=True)
class RopeSpec:
    """One model's rotary embedding.

    Args:
        kind: One of `ROPE_KINDS`.
        theta: Base of the geometric series of wavelengths, above 1.
        factor: Stretch of the context, at least 1. Unused by `default`.
        original_max_positions: Positions the model was first trained on. Used by `yarn`
            and `llama3`.
        attention_factor: Multiplier of both cosine and sine. 1 except for `yarn`.
        beta_fast: YaRN: rotations above which a dimension is left alone.
        beta_slow: YaRN: rotations below which a dimension is fully interpolated.
        is_truncated: YaRN: round the borders of the ramp outwards to whole dimensions.
        low_freq_factor: Llama 3: divides the longest wavelength that is left alone.
        high_freq_factor: Llama 3: the same for the shortest one that is stretched.
    """

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_positions: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


def read_rope(config: Mapping[str, object], max_positions: int) -> RopeSpec:
    """Read the rotary embedding out of a config.json.

    Args:
        config: The parsed file. `rope_scaling` wins over `rope_parameters`, and a theta
            inside them over `rope_theta` beside them, as in transformers.
        max_positions: `max_position_embeddings`; the fallback for the original length.

    Returns:
        The specification, every number finite and within bounds.

    Raises:
        UnsupportedArchitectureError: A kind that changes with the length of the text
            (dynamic, longrope), a partial rotation, or one unknown here.
        CheckpointError: A field is missing, not a number, or out of bounds.

    Source:
        transformers 5.5.4, modeling_rope_utils.py, RotaryEmbeddingConfigMixin.
    """
    fields = _rope_fields(config)
    kind = _read_kind(fields)
    theta = read_float(fields, "rope_theta", low=1.0, high=_MAX_THETA, default=10_000.0)
    if theta <= 1.0:
        raise CheckpointError(
            f"'rope_theta' is {theta!r} in config.json; it must be above 1.",
            "restore config.json from the model's publisher",
            field="rope_theta",
            value=theta,
        )
    if kind == "default":
        return RopeSpec(theta=theta)
    factor = read_float(fields, "factor", low=1.0, high=_MAX_FACTOR)
    if kind == "linear":
        return RopeSpec(kind=kind, theta=theta, factor=factor)
    # A length beside the block wins over one inside it, as in transformers.
    holder = config if config.get("original_max_position_embeddings") is not None else fields
    original = read_int(
        holder,
        "original_max_position_embeddings",
        low=1,
        high=_MAX_POSITIONS,
        default=max_positions,
    )
    if kind == "llama3":
        return _read_llama3(fields, theta, factor, original)
    return _read_yarn(fields, theta, factor, original)


def _read_kind(fields: Mapping[str, object]) -> str:
    """Return the kind of embedding; refuse unknown ones and partial rotations."""
    kind = fields.get("rope_type") or fields.get("type") or "default"
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise UnsupportedArchitectureError(
            f"The rotary embedding is of type {shown(kind)}; known are: {', '.join(ROPE_KINDS)}. "
            "Positions would be encoded wrongly.",
            "remove 'rope_scaling' from config.json if the model works without it, or use a "
            "checkpoint with one of these types",
            field="rope_type",
            value=kind,
        )
    if (partial := fields.get("partial_rotary_factor", 1.0)) not in (1, None):
        raise UnsupportedArchitectureError(
            f"'partial_rotary_factor' is {shown(partial)}; only a full rotation is supported.",
            "use a checkpoint of Qwen3, Qwen2 or Llama, which rotate every dimension",
            field="partial_rotary_factor",
            value=partial,
        )
    return kind


def _rope_fields(config: Mapping[str, object]) -> dict[str, object]:
    """Merge the two historical places of the rotary fields into one dictionary."""
    place = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    block = config.get(place) or {}
    if not isinstance(block, Mapping):
        raise CheckpointError(
            f"{place!r} is {shown(block)} in config.json; it must be an object.",
            "restore config.json from the model's publisher",
            field=place,
            value=block,
        )
    if any(isinstance(value, Mapping) for value in block.values()):
        raise UnsupportedArchitectureError(
            "'rope_parameters' differ between kinds of layers; one set for all is supported.",
            "use a checkpoint of Qwen3, Qwen2 or Llama, which have one set",
            field="rope_parameters",
            value=sorted(str(name) for name in block),
        )
    fields = dict(block)
    for name in ("rope_theta", "partial_rotary_factor"):
        if fields.get(name) is None and config.get(name) is not None:
            fields[name] = config[name]
    return fields


def _read_llama3(
    fields: Mapping[str, object], theta: float, factor: float, original: int
) -> RopeSpec:
    """Read the Llama 3 fields; the high factor must exceed the low one."""
    low = read_float(fields, "low_freq_factor", low=1e-6, high=_MAX_FACTOR)
    high = read_float(fields, "high_freq_factor", low=1e-6, high=_MAX_FACTOR)
    if high <= low:
        raise CheckpointError(
            f"'high_freq_factor' is {high!r} and 'low_freq_factor' {low!r} in config.json; the "
            "first must be larger.",
            "restore config.json from the model's publisher",
            field="high_freq_factor",
            value=high,
        )
    return RopeSpec(
        kind="llama3",
        theta=theta,
        factor=factor,
        original_max_positions=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _read_yarn(
    fields: Mapping[str, object], theta: float, factor: float, original: int
) -> RopeSpec:
    """Read the YaRN fields and resolve the attention factor."""
    attention_factor = read_optional_float(fields, "attention_factor", low=0.0, high=1e3)
    mscale = read_optional_float(fields, "mscale", low=0.0, high=1e3)
    mscale_all_dim = read_optional_float(fields, "mscale_all_dim", low=0.0, high=1e3)
    if attention_factor is None:
        if mscale and mscale_all_dim:
            attention_factor = _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all_dim)
        else:
            attention_factor = _yarn_mscale(factor, 1.0)
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_max_positions=original,
        attention_factor=attention_factor,
        beta_fast=read_optional_float(fields, "beta_fast", low=0.0, high=_MAX_FACTOR) or 32.0,
        beta_slow=read_optional_float(fields, "beta_slow", low=0.0, high=_MAX_FACTOR) or 1.0,
        is_truncated=bool(fields.get("truncate", True)),
    )


def _yarn_mscale(factor: float, mscale: float) -> float:
    """Return YaRN's growth of the attention temperature with the stretch."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> npt.NDArray[np.float32]:
    """Return the angle per position of each pair of dimensions, in radians.

    Args:
        rope: The rotary embedding.
        head_dim: Dimensions of one attention head, even.

    Returns:
        float32 [head_dim / 2], falling from 1. Computed in float64 and rounded once.

    Source:
        transformers 5.5.4, modeling_rope_utils.py; YaRN: arxiv.org/abs/2309.00071.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = rope.theta**-exponents  # [head_dim / 2]
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "yarn":
        kept = _yarn_kept_share(rope, head_dim)
        frequencies = frequencies / rope.factor * (1.0 - kept) + frequencies * kept
    elif rope.kind == "llama3":
        frequencies = _llama3_frequencies(rope, frequencies)
    return frequencies.astype(np.float32)


def _yarn_kept_share(rope: RopeSpec, head_dim: int) -> npt.NDArray[np.float64]:
    """Return how much of each frequency YaRN leaves unstretched, 0 to 1, [head_dim / 2]."""

    def dimension_of(rotations: float) -> float:
        turns = rope.original_max_positions / (rotations * 2.0 * math.pi)
        return head_dim * math.log(turns) / (2.0 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = (high - low) or 0.001  # the reference's guard against a ramp of no width
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float64) - low) / width, 0.0, 1.0)
    return 1.0 - ramp


def _llama3_frequencies(
    rope: RopeSpec, frequencies: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Stretch long wavelengths, keep short ones, and blend those between, [head_dim / 2]."""
    wavelengths = 2.0 * math.pi / frequencies
    longest_kept = rope.original_max_positions / rope.high_freq_factor
    shortest_stretched = rope.original_max_positions / rope.low_freq_factor
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = (rope.original_max_positions / wavelengths - rope.low_freq_factor) / span
    blended = (1.0 - smooth) * frequencies / rope.factor + smooth * frequencies
    stretched = np.where(wavelengths > shortest_stretched, frequencies / rope.factor, blended)
    return np.where(wavelengths < longest_kept, frequencies, stretched)
