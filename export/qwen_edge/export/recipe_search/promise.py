"""Whether a model that was found for a KL loses as little as was expected of it.

A search expects losses from calibration text and takes those of single matrices to add up; what
was measured is on other text, of the whole model. Knows no files; `quality/sealing.py` refuses.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_edge.errors import format_bytes
from qwen_edge.export.recipe_search.budget import Budget
from qwen_edge.export.recipe_search.candidates import megabytes
from qwen_edge.export.recipe_search.search import SearchResult, round_upwards
from qwen_edge.runtime.quality_facts import QualityFacts

_MARGIN = 0.95  # the next model is to keep to the budget, not to come to its edge


@dataclass(frozen=True)
class BrokenBudget:
    """A package that loses more than its budget allows.

    Args:
        problem: What it loses, what was expected, what is allowed: a sentence.
        fix: Budgets to ask for instead.
        facts: The figures.
    """

    problem: str
    fix: str
    facts: Mapping[str, float]


def find_broken_budget(
    search: SearchResult, budget: Budget, quality: QualityFacts
) -> BrokenBudget | None:
    """Return what is wrong with a package, or None where it keeps to the budget's KL.

    Args:
        search: How its recipe was found.
        budget: What it was found for.
        quality: What was measured; the weights alone count, as it runs only without them.
    """
    reading = quality.weights or quality.as_run
    if budget.kl is None or reading is None or reading.kl.value <= budget.kl:
        return None
    measured, expected = reading.kl.value, search.point.kl
    told = "By its weights" if quality.weights is not None else "As it runs"
    problem = (
        f"{told} it has a KL of {measured:.3g} to the checkpoint, and the budget allows "
        f"{budget.kl:g}; from the calibration text {expected:.3g} was expected."
    )
    facts = {"measured_kl": measured, "expected_kl": expected, "allowed_kl": budget.kl}
    return BrokenBudget(problem, "\n".join(_fixes(search, budget, measured)), facts)


def _fixes(search: SearchResult, budget: Budget, measured: float) -> list[str]:
    """Return budgets to ask for: one that will do by the same proportion, and this package's."""
    limit, point = budget.kl or 0.0, search.point
    wanted = _MARGIN * limit * point.kl / measured
    larger = search.frontier.within_kl(wanted)
    exact = f"{point.num_bytes / 1e6:.6f}".rstrip("0").rstrip(".")
    same = f'--budget "size<={exact}MB,kl<={round_upwards(measured)}"'
    kept = f"{same} takes this package; its calibration is kept"
    if larger is None:
        largest = search.frontier.points[-1]
        ratio = measured / point.kl if point.kl else 1.0
        return [
            f"no format here is likely to do: with the most exact one for every matrix, at "
            f"{format_bytes(largest.num_bytes)}, about {largest.kl * ratio:.2g} is left",
            kept,
        ]
    return [
        f'--budget "size<={megabytes(larger.num_bytes)}MB,kl<={limit:g}", where {wanted:.2g} is '
        "expected and so about as much as allowed will be measured",
        f"or {kept}",
    ]
