"""A recipe with a format for every matrix, found by measuring: for a budget, or for a ratio.

What was measured is kept beside the target until the package is published, so that an interrupted
export, or another budget for the same model, does not measure again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwen_edge.errors import BudgetError
from qwen_edge.export.calibration_texts import CalibrationText
from qwen_edge.export.checkpoint import Checkpoint
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.recipe_search.budget import Budget
from qwen_edge.export.recipe_search.candidates import INT8, megabytes, other_bytes, too_small
from qwen_edge.export.recipe_search.frontier import Frontier, Point
from qwen_edge.export.recipe_search.sensitivity import (
    MOMENT_TOKENS,
    MatrixCost,
    Report,
    measure_sensitivity,
)
from qwen_edge.profiles.matrix_format import MatrixFormat
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.files.replacing import replace_content


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    Args:
        recipe: With a format for every matrix of the layers; reproduces the package.
        frontier: All that could be had.
        point: The chosen model.
        num_tokens: About how many of the calibration text were read.
        is_kept: What was measured is an earlier export's; nothing was measured again.
    """

    recipe: Recipe
    frontier: Frontier
    point: Point
    num_tokens: int
    is_kept: bool = False


def search_recipe(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    recipe: Recipe,
    candidates: Sequence[MatrixFormat],
    text: CalibrationText,
    budget: Budget | None,
    kept: Path,
    key: str,
    report: Report,
) -> SearchResult:
    """Measure what formats cost, unless that is known, and choose.

    Args:
        spec: The architecture.
        checkpoint: Its tensors.
        recipe: Its methods; its exceptions stand, its `ratio` is heeded where there is no budget.
        candidates: Formats that may be chosen.
        text: Calibration text.
        budget: What to keep to; None for the recipe's ratio.
        kept: File that keeps what was measured.
        key: Everything that this depends on besides.
        report: Told of every layer.

    Raises:
        BudgetError: No choice keeps to the budget; with the nearest that does.
        CheckpointError: A layer gives no numbers.
        DeviceError: The CPU refuses a layer.
    """
    tried = list(candidates) if budget is not None else [recipe.layer_format, INT8]
    key = hashlib.sha256(f"{key}\n{tried}".encode()).hexdigest()
    costs = _read_costs(kept, key)
    is_kept = costs is not None
    if costs is None:
        costs = measure_sensitivity(spec, checkpoint, recipe, tried, text.samples, report)
        _write_costs(kept, key, costs)
    free = [cost for cost in costs if not recipe.is_exception(cost.name)]
    frontier = Frontier(free, other_bytes(spec, recipe, [cost.name for cost in free]))
    point = _within_ratio(frontier, free, recipe) if budget is None else _choose(frontier, budget)
    chosen = _name_formats(recipe, frontier.formats(point))
    num_tokens = min(text.num_tokens, MOMENT_TOKENS)
    return SearchResult(chosen, frontier, point, num_tokens, is_kept)


def _choose(frontier: Frontier, budget: Budget) -> Point:
    """Return the best model within a budget: the smallest where only its loss is limited."""
    if budget.num_bytes is None:
        point = frontier.within_kl(budget.kl or 0.0)
        if point is None:
            best = frontier.points[-1]
            raise BudgetError(
                f"The budget allows a KL of {budget.kl:g}, and the least that the formats for "
                f"these devices come to is about {best.kl:.2g}, at {megabytes(best.num_bytes)} MB.",
                f'--budget "kl<={round_upwards(best.kl)}" is the nearest that is possible',
                least_kl=best.kl,
            )
        return point
    point = frontier.within_bytes(budget.num_bytes)
    if point is None:
        raise too_small(budget.num_bytes, frontier.points[0].num_bytes)
    if budget.kl is not None and point.kl > budget.kl:
        raise _both_impossible(frontier, budget, budget.num_bytes, budget.kl, point)
    return point


def _both_impossible(
    frontier: Frontier, budget: Budget, num_bytes: int, kl: float, point: Point
) -> BudgetError:
    fixes = [f'--budget "size<={megabytes(num_bytes)}MB,kl<={round_upwards(point.kl)}"']
    larger = frontier.within_kl(kl)
    if larger is not None:
        fixes.append(f'or --budget "size<={megabytes(larger.num_bytes)}MB,kl<={kl:g}"')
    return BudgetError(
        f"Within {megabytes(num_bytes)} MB the least KL is about {point.kl:.2g}, and the budget "
        f"allows {kl:g}.",
        "\n".join(fixes),
        budget=asdict(budget),
        nearest_kl=point.kl,
        nearest_bytes=None if larger is None else larger.num_bytes,
    )


def _within_ratio(frontier: Frontier, costs: Sequence[MatrixCost], recipe: Recipe) -> Point:
    """Return the point at which so many weights are int8 that no more may be."""
    sizes = {cost.name: cost.shape[0] * cost.shape[1] for cost in costs}
    allowed = (1 - recipe.ratio) * sum(sizes.values())
    best = frontier.points[0]
    for point in frontier.points:
        formats = frontier.formats(point)
        if sum(sizes[name] for name, found in formats.items() if found == INT8) > allowed:
            break
        best = point
    return best


def _name_formats(recipe: Recipe, formats: dict[str, MatrixFormat]) -> Recipe:
    """Return the recipe with every format written out; the name tells it from others."""
    matrices = dict(recipe.matrices)
    for name, found in formats.items():
        if found != recipe.layer_format:
            matrices[name.removeprefix("model.").removesuffix(".weight")] = found
    digest = hashlib.sha256(repr(sorted(map(str, matrices.items()))).encode()).hexdigest()
    reasons = dict(recipe.reasons) | {
        "ratio": "every format is written out",
        "matrices": "chosen by how much each format was measured to cost",
    }
    return replace(
        recipe,
        name=f"{recipe.name}-{digest[:8]}",
        summary=f"found by {recipe.name} for one model",
        ratio=1.0,
        matrices=matrices,
        reasons=reasons,
    )


def _read_costs(path: Path, key: str) -> tuple[MatrixCost, ...] | None:
    try:
        content = json.loads(path.read_bytes())
        if content["key"] != key:
            return None
        return tuple(
            MatrixCost(
                entry["name"],
                (entry["shape"][0], entry["shape"][1]),
                {MatrixFormat(**found): float(kl) for found, kl in entry["kl"]},
            )
            for entry in content["costs"]
        )
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None  # measured again


def _write_costs(path: Path, key: str, costs: Sequence[MatrixCost]) -> None:
    entries: list[dict[str, Any]] = [
        {
            "name": cost.name,
            "shape": list(cost.shape),
            "kl": [[asdict(found), kl] for found, kl in cost.kl.items()],
        }
        for cost in costs
    ]
    replace_content(path, json.dumps({"key": key, "costs": entries}).encode("ascii"))


def round_upwards(kl: float) -> str:
    """Return a KL with two digits that is no smaller."""
    return f"{kl * 1.05:.2g}" if float(f"{kl:.2g}") < kl else f"{kl:.2g}"
