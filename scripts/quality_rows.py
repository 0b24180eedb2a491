"""What `bench_quality.py` measures and finds: its rows, what they have to keep to, and their table.

Arithmetic and text only; nothing is exported or run here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MARKS = ("<!-- figures: start -->", "<!-- figures: end -->")
AUTO = "auto"
NNCF = "NNCF"
DEFAULT = "int4-awq"
DEMO, OUTLIERS = "demo", "outliers"
MAX_LOST_POINTS = 1.0
"""Of task accuracy, that the default recipe may lose."""
MAX_NNCF_RATIO = 1.05
SAME_FUNCTION_KL = 1e-3
_HEADINGS = {
    DEMO: "The demo model as it was trained",
    OUTLIERS: "The same function with strong outliers",
}
_COLUMNS = ("recipe", "MB", "KL, tasks", "top 1, tasks", "KL, texts", "tasks right")
_Z = 1.96  # of an interval that holds 95 of 100


@dataclass(frozen=True)
class Row:
    """One compressed model and what was measured of it.

    Args:
        model: `DEMO` or `OUTLIERS`.
        name: Recipe of the catalog, or `NNCF`.
        variant: What differs from that recipe, or NNCF's methods; may be empty.
        aliases: Recipes of the catalog that say the same.
        limit_bytes: The size that it was made for; its own for a fixed recipe.
        weights_bytes: Of the weights.
        kl: Mean KL by weights on held-out conversations, with both ends of its interval.
        top1: Share of the same likeliest token there, the same way.
        kl_texts: Mean KL by weights on the built-in texts, the same way.
        num_right: Tasks answered exactly as the package runs; None where it was not run.
        num_tasks: How many were asked.
    """

    model: str
    name: str
    variant: str
    aliases: tuple[str, ...]
    limit_bytes: int
    weights_bytes: int
    kl: tuple[float, float, float]
    top1: tuple[float, float, float]
    kl_texts: tuple[float, float, float]
    num_right: int | None
    num_tasks: int

    @property
    def label(self) -> str:
        """Return how the row is called."""
        return f"{self.name}{self.variant}"

    @property
    def accuracy(self) -> float | None:
        """Return the share of tasks answered exactly, in points of 100."""
        return None if self.num_right is None else 100 * self.num_right / self.num_tasks


def find_misses(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return every figure that is not as it has to be.

    Args:
        rows: Of both models; rows that are not there are not looked at.
    """
    misses: list[dict[str, Any]] = []
    for auto, fixed in pair_up(rows):
        if auto.weights_bytes > fixed.weights_bytes:
            sizes = auto.weights_bytes, fixed.weights_bytes
            misses.append(_miss("auto is larger", auto, fixed, *sizes))
        if auto.kl[0] > fixed.kl[0]:
            misses.append(_miss("auto is worse", auto, fixed, auto.kl[0], fixed.kl[0]))
    for model in _HEADINGS:
        found = {row.label: row for row in rows if row.model == model}
        default, exact = found.get(DEFAULT), found.get("fp16")
        # The default may be bad at outliers: that is what the others are for, and is in the table.
        if model == DEMO and default is not None and exact is not None:
            right, wanted = default.accuracy, exact.accuracy
            if right is not None and wanted is not None and wanted - right > MAX_LOST_POINTS:
                misses.append(_miss("the default loses tasks", default, exact, right, wanted))
        ours, theirs = found.get("int4-awq-se"), found.get(f"{NNCF}, AWQ, scale estimation")
        if ours is not None and theirs is not None and ours.kl[0] > MAX_NNCF_RATIO * theirs.kl[0]:
            misses.append(_miss("NNCF is better", ours, theirs, ours.kl[0], theirs.kl[0]))
        if exact is not None and exact.kl[0] > SAME_FUNCTION_KL:
            misses.append(_miss("another function", exact, exact, exact.kl[0], SAME_FUNCTION_KL))
    return misses


def pair_up(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return pairs of `auto` and a fixed recipe of the size that it was made for."""
    return [
        (auto, fixed)
        for auto in rows
        for fixed in rows
        if auto.name == AUTO
        and fixed.name not in (AUTO, NNCF)
        and (fixed.model, fixed.limit_bytes) == (auto.model, auto.limit_bytes)
    ]


def write_tables(rows: Sequence[Row]) -> str:
    """Return a table for each model, the smallest first and the best of each size in bold."""
    return "\n".join(
        line
        for model, heading in _HEADINGS.items()
        for line in (f"### {heading}", "", *_table([row for row in rows if row.model == model]), "")
    )


def replace_between_marks(page: str, middle: str) -> str:
    """Return a page with other figures."""
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{middle.strip()}\n{MARKS[1]}{after}"


def _table(rows: Iterable[Row]) -> list[str]:
    ordered = sorted(rows, key=lambda row: (row.limit_bytes, row.kl[0], row.label))
    best: dict[int, float] = {}
    for row in ordered:
        best.setdefault(row.limit_bytes, row.kl[0])
    sizes = [row.limit_bytes for row in ordered]
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        f"| {' | '.join('---' for _ in _COLUMNS)} |",
    ]
    for row in ordered:
        is_best = row.kl[0] == best[row.limit_bytes] and sizes.count(row.limit_bytes) > 1
        cells = [
            _name(row),
            f"{row.weights_bytes / 1e6:.2f}",
            f"**{_kl(row.kl)}**" if is_best else _kl(row.kl),
            f"{row.top1[0]:.2%}".replace("%", " %"),
            _kl(row.kl_texts),
            _right(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _name(row: Row) -> str:
    if row.name == NNCF:
        return row.label
    text = f"`{row.name}`{row.variant}"
    return text + (f" = {', '.join(f'`{name}`' for name in row.aliases)}" if row.aliases else "")


def _kl(interval: tuple[float, float, float]) -> str:
    """Return a KL with its interval, all with the digits that the interval allows."""
    value, low, high = interval
    digits = 4 if value < 0.1 else 3
    if value < 0.0001:
        return f"{value:.0e}"
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _right(row: Row) -> str:
    if row.num_right is None:
        return "–"
    low, high = wilson(row.num_right, row.num_tasks)
    return f"{row.num_right} of {row.num_tasks} ({100 * low:.1f}–{100 * high:.1f} %)"


def wilson(num_right: int, count: int) -> tuple[float, float]:
    """Return the interval of a share that holds it in 95 of 100 draws.

    Source:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    share = num_right / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    spread = math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    half = _Z * spread / (1 + _Z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _miss(what: str, row: Row, other: Row, found: float, wanted: float) -> dict[str, Any]:
    return {
        "what": what,
        "model": row.model,
        "row": row.label,
        "other": other.label,
        "found": float(f"{found:.4g}"),
        "wanted": float(f"{wanted:.4g}"),
    }
