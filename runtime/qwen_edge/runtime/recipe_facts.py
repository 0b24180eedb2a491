"""What a manifest says of the recipe: how the weights of a package are stored, and by what method.

A part of `manifest.py`, with what plans of memory and time make of it. Fields that came later
have defaults, so that earlier manifests still read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PlannedWeights = Literal["fp16", "int8", "int4"]


@dataclass(frozen=True)
class MatrixFacts:
    """How the matrices of one exception are stored."""

    weights: Literal["fp16", "int8", "int4", "nf4"]
    symmetric: bool
    group_size: int


@dataclass(frozen=True)
class RecipeFacts:
    """The recipe's settings as they were applied, without their reasons.

    `matrices` are the exceptions, by "layers.3.mlp.down_proj" or "layers.*.mlp.down_proj".
    """

    name: str
    weights: Literal["fp16", "int8", "int4", "nf4"]
    symmetric: bool
    group_size: int
    awq: bool
    embedding: Literal["fp16", "int8"]
    head: Literal["fp16", "int8"]
    calibration: Literal["none", "activations"] = "none"
    scale_estimation: bool = False
    gptq: bool = False
    ratio: float = 1.0
    matrices: Mapping[str, MatrixFacts] | None = None

    @property
    def planned_weights(self) -> PlannedWeights:
        """What plans of memory and time reckon with: the format of as many bits."""
        return planned_weights(self.weights)

    @property
    def is_for_own_kernels(self) -> bool:
        """Whether kernels of ours take the layers' matrices; others are the engine's."""
        return is_for_own_kernels(self.weights, is_symmetric=self.symmetric)


@dataclass(frozen=True)
class CalibrationFacts:
    """The text a calibrated recipe read: "built-in" or a file's name, and its bytes' SHA-256.

    `expected_kl` is what a search for the recipe reckoned with, in nats; None without one.
    """

    source: str
    sha256: str
    num_samples: int
    num_tokens: int
    expected_kl: float | None = None


def planned_weights(weights: Literal["fp16", "int8", "int4", "nf4"]) -> PlannedWeights:
    """Return the format of as many bits that memory and time were measured with."""
    return "int4" if weights == "nf4" else weights


def is_for_own_kernels(weights: str, *, is_symmetric: bool) -> bool:
    """Return whether kernels of ours take a format, as `kernels/compressed_weights.py` reads it.

    Args:
        weights: "fp16", "int8", "int4" or "nf4".
        is_symmetric: Without a zero point; 4 bits with one are the engine's.
    """
    return weights == "int8" or (weights == "int4" and is_symmetric)
