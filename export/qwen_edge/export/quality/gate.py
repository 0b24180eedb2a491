"""What an export may lose: a person's gate, and the bound for a model that is lost.

A gate is a text such as "kl=0.05,top1=0.95". It is compared with the package as it runs where that
was measured, else with its weights. This module measures nothing; read `measure.py` for that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qwen_edge.errors import UsageError, did_you_mean, join_problems
from qwen_edge.runtime.quality_facts import QualityFacts, ReadingFacts

LOST_KL = 0.5
"""Mean KL above which a model is not the one it was: at 0.5 every third next token is another."""

_EXAMPLE = 'write it as "kl=0.05,top1=0.95"'


@dataclass(frozen=True)
class _Figure:
    """One key of a gate: what it bounds, from which side, and what the bound may be."""

    meaning: str
    is_upper: bool
    largest: float = math.inf


_FIGURES: Mapping[str, _Figure] = {
    "kl": _Figure("mean KL", is_upper=True),
    "kl_p99": _Figure("KL at the 99th percentile", is_upper=True),
    "top1": _Figure("share of the same likeliest token", is_upper=False, largest=1.0),
    "top5": _Figure("share of the same five likeliest tokens", is_upper=False, largest=1.0),
    "ppl": _Figure("perplexity by the checkpoint's", is_upper=True),
}


@dataclass(frozen=True)
class Gate:
    """Bounds of what may be lost.

    Args:
        limits: By key, in the order in which they were given.
    """

    limits: Mapping[str, float]

    def __str__(self) -> str:
        """Return the gate as it is written."""
        return ",".join(f"{key}={limit:g}" for key, limit in self.limits.items())

    def find_misses(self, quality: QualityFacts) -> list[str]:
        """Return what does not pass, as clauses.

        Args:
            quality: What was measured.
        """
        _, reading = quality.decisive
        misses = []
        for key, limit in self.limits.items():
            figure = _FIGURES[key]
            value = _value_of(reading, key)
            passes = value <= limit if figure.is_upper else value >= limit
            if not passes:
                bound = "at most" if figure.is_upper else "at least"
                misses.append(f"{figure.meaning} is {value:.4g}, {bound} {limit:g} was asked for")
        return misses


def parse_gate(text: str) -> Gate:
    """Read a gate.

    Args:
        text: Keys with bounds, such as "kl=0.05,top1=0.95".

    Raises:
        UsageError: Naming every key that there is none of, and every bound out of range.
    """
    limits: dict[str, float] = {}
    problems = []
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in _FIGURES:
            hint = did_you_mean(key.lower(), _FIGURES).strip().rstrip("?")
            known = f"known are {', '.join(_FIGURES)}"
            problems.append(f"there is no figure {key!r} ({hint.lower() or known})")
        elif not equals:
            problems.append(f"{key!r} has no bound")
        elif key in limits:
            problems.append(f"{key!r} stands there twice")
        else:
            limit = _read_bound(value)
            largest = _FIGURES[key].largest
            limits[key] = 0.0 if limit is None else limit
            if limit is None or not 0 <= limit <= largest:
                upto = f"from 0 to {largest:g}" if math.isfinite(largest) else "of 0 or more"
                problems.append(f"{key!r} has the bound {value!r:.40}, expected a number {upto}")
    if problems:
        raise UsageError(
            f"The gate {text!r:.120} cannot be used: {join_problems(problems)}.",
            _EXAMPLE,
            field="gate",
            problems=tuple(problems),
        )
    return Gate(limits)


def _read_bound(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _value_of(reading: ReadingFacts, key: str) -> float:
    """Return a figure; one that is not finite counts as the worst."""
    if key == "ppl":
        return math.inf if reading.perplexity_ratio is None else reading.perplexity_ratio
    value: float = getattr(reading, key).value
    return value


def is_lost(quality: QualityFacts) -> bool:
    """Whether the model is lost, by its weights or as it runs."""
    return any(reading.kl.value > LOST_KL for reading in quality.readings.values())
