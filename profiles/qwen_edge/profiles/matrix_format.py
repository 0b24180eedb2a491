"""How one weight matrix is stored, and the names by which a recipe makes exceptions.

Owns the formats, their ranges and the keys of a recipe's `[matrices]` table. It does not know
the rest of a recipe (`recipe.py`) nor how many layers a model has.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from qwen_edge.errors import did_you_mean

WeightFormat = Literal["fp16", "int8", "int4", "nf4"]

PER_CHANNEL = -1  # NNCF's group size for one scale per output channel
MIN_GROUP_SIZE = 32  # NNCF 3.4, AdvancedCompressionParameters.min_adjusted_group_size
MAX_GROUP_SIZE = 512  # largest power of two that divides Qwen3-4B's hidden size, 2,560
FOUR_BITS = frozenset({"int4", "nf4"})  # the formats that have groups and leave room for methods

MATRIX_NAMES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_KEY = re.compile(r"layers\.(\*|0|[1-9][0-9]{0,3})\.(.+)")
_TENSOR = re.compile(r"model\.(layers\.[0-9]+\.(.+))\.weight")


@dataclass(frozen=True)
class MatrixFormat:
    """How one matrix is stored.

    Args:
        weights: "fp16", "int8", "int4" or "nf4" (16 levels at the quantiles of a normal
            distribution).
        symmetric: Without a zero point. No meaning for fp16 and nf4, which have none.
        group_size: Weights that share a scale; -1 is one output channel.
    """

    weights: WeightFormat
    symmetric: bool
    group_size: int

    def __str__(self) -> str:
        """Return the format in a few words: "int4 sym g128"."""
        if self.weights == "fp16":
            return "fp16"
        kind = "" if self.weights == "nf4" else " sym" if self.symmetric else " asym"
        group = "per channel" if self.group_size == PER_CHANNEL else f"g{self.group_size}"
        return f"{self.weights}{kind} {group}"


def find_format(matrices: Mapping[str, MatrixFormat], tensor_name: str) -> MatrixFormat | None:
    """Return the exception that holds for a tensor, or None.

    Args:
        matrices: Exceptions by key; a key with the layer's number beats one with "*".
        tensor_name: For example "model.layers.3.mlp.down_proj.weight".
    """
    match = _TENSOR.fullmatch(tensor_name)
    if match is None:
        return None
    return matrices.get(match[1]) or matrices.get(f"layers.*.{match[2]}")


def layers_named(matrices: Mapping[str, MatrixFormat]) -> tuple[int, ...]:
    """Return the numbers of the layers that exceptions name, sorted."""
    found = (_KEY.fullmatch(key) for key in matrices)
    return tuple(sorted({int(match[1]) for match in found if match and match[1] != "*"}))


def key_problems(key: str) -> list[str]:
    """Return why a key names no matrix, or an empty list."""
    match = _KEY.fullmatch(key)
    if match is not None and match[2] in MATRIX_NAMES:
        return []
    known = [f"layers.{match[1] if match else '*'}.{name}" for name in MATRIX_NAMES]
    hint = did_you_mean(key, known) or f" Known: layers.*.{', '.join(MATRIX_NAMES)}."
    return [
        f"matrices names {key!r}; expected 'layers.NUMBER.MATRIX' or 'layers.*.MATRIX' for "
        f"every layer.{hint}"
    ]


def format_problems(found: MatrixFormat, where: str = "") -> list[str]:
    """Return every range problem of a format.

    Args:
        found: Its values may be of any kind and size.
        where: What the problems begin with, for example "matrices 'layers.0.mlp.up_proj': ".
    """
    allowed = get_args(WeightFormat)
    problems, size = [], found.group_size
    if found.weights not in allowed:
        hint = did_you_mean(str(found.weights).lower(), allowed)
        expected = f"expected one of {', '.join(allowed)}"
        problems.append(f"{where}weights is {found.weights!r}; {expected}.{hint}")
    is_group = MIN_GROUP_SIZE <= size <= MAX_GROUP_SIZE and size & (size - 1) == 0
    if found.weights in FOUR_BITS and not is_group and size != PER_CHANNEL:
        problems.append(
            f"{where}group_size is {size:,}; expected -1 (one output channel) or a power of two "
            f"from {MIN_GROUP_SIZE} to {MAX_GROUP_SIZE:,}"
        )
    if found.weights in ("fp16", "int8") and size != PER_CHANNEL:
        problems.append(
            f"{where}group_size is {size:,} with {found.weights} weights; only int4 and nf4 have "
            "groups, write -1"
        )
    if found.weights == "nf4" and not found.symmetric:
        problems.append(f"{where}symmetric is false with nf4 weights; nf4 has no zero point")
    return problems
