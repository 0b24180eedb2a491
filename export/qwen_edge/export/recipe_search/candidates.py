"""What a recipe search may choose from, and the budgets that no choice can keep to.

Data and arithmetic only: nothing is read or run, so that a request can be refused at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qwen_edge.errors import BudgetError
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.packed_size import matrix_bytes, packed_bytes
from qwen_edge.export.recipe_search.budget import Budget
from qwen_edge.profiles.legality import legality
from qwen_edge.profiles.matrix_format import PER_CHANNEL, MatrixFormat
from qwen_edge.profiles.profile import Profile
from qwen_edge.profiles.recipe import Recipe

AUTO = "auto"
CANDIDATES = (
    MatrixFormat("int4", symmetric=True, group_size=PER_CHANNEL),
    MatrixFormat("int4", symmetric=True, group_size=128),
    MatrixFormat("int4", symmetric=True, group_size=64),
    MatrixFormat("int4", symmetric=True, group_size=32),
    MatrixFormat("int8", symmetric=False, group_size=PER_CHANNEL),
)
"""Formats that the runtime's own kernels take, so each costs speed by its bytes alone."""
INT8 = CANDIDATES[-1]


def needs_search(recipe: Recipe) -> bool:
    """Return whether a recipe leaves it to measuring which matrix gets which format."""
    return recipe.name == AUTO or recipe.ratio < 1


def legal_candidates(
    recipe: Recipe, profile: Profile, formats: Sequence[str]
) -> list[MatrixFormat]:
    """Return the formats that all devices of a profile take.

    Args:
        recipe: What the layers get otherwise.
        profile: Its devices count where OpenVINO's form is written.
        formats: "openvino", "onnx" or both.
    """
    devices = [entry.device for entry in profile.devices] if "openvino" in formats else []
    plain = replace(recipe, matrices={}, ratio=1.0)
    legal = []
    for found in CANDIDATES:
        tried = replace(plain, matrices={"layers.*.mlp.up_proj": found})
        if all(legality(tried, device).value for device in devices):
            legal.append(found)
    return legal


def check_budget(
    budget: Budget, spec: DecoderSpec, recipe: Recipe, candidates: Sequence[MatrixFormat]
) -> None:
    """Refuse a size that no choice of formats can keep to, before anything is measured.

    Args:
        budget: What was asked for.
        spec: The architecture.
        recipe: Formats of embedding and head.
        candidates: Formats for the layers' matrices.

    Raises:
        BudgetError: With the smallest possible size.
    """
    if budget.num_bytes is None:
        return
    smallest = other_bytes(spec, recipe) + sum(
        min(matrix_bytes(one, *shape) for one in candidates) for shape in _shapes(spec).values()
    )
    if smallest > budget.num_bytes:
        raise too_small(budget.num_bytes, smallest)


def too_small(allowed_bytes: int, smallest_bytes: int) -> BudgetError:
    """Return the error for a size that no choice of formats keeps to."""
    return BudgetError(
        f"The budget allows {allowed_bytes:,} bytes of weights, and this model has at least "
        f"{smallest_bytes:,} with the formats that its devices take.",
        f'--budget "size<={megabytes(smallest_bytes)}MB" is the nearest that is possible',
        smallest_bytes=smallest_bytes,
    )


def _shapes(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    return {
        name: shape
        for layer_index in range(spec.num_layers)
        for name, shape in spec.linear_shapes(layer_index).items()
    }


def other_bytes(spec: DecoderSpec, recipe: Recipe, names: Iterable[str] | None = None) -> int:
    """Return the bytes of all weights but some of the layers' matrices.

    Args:
        spec: The architecture.
        recipe: Formats of all that is counted.
        names: Tensors that are not counted; all matrices of the layers when None.
    """
    plain = replace(recipe, ratio=1.0)
    shapes = _shapes(spec)
    layers = sum(matrix_bytes(plain.matrix_format(name), *shapes[name]) for name in names or shapes)
    return packed_bytes(plain, spec) - layers


def megabytes(num_bytes: int) -> str:
    """Return millions of bytes, rounded up to a hundredth."""
    return f"{-(-num_bytes // 10_000) / 100:.2f}"
