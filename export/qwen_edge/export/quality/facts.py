"""From a measurement to what is written down: few digits, and no number that JSON does not know.

Four significant digits are more than the intervals allow, and few enough that the last bits of an
addition in another order do not change the text.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from qwen_edge.export.quality.measure import Loss, Quality
from qwen_edge.export.quality.statistics import Estimate, Figures
from qwen_edge.export.quality.texts import QualityText
from qwen_edge.runtime.quality_facts import IntervalFacts, QualityFacts, ReadingFacts
from qwen_edge.runtime.schema import to_json

_DIGITS = 4


def make_facts(
    quality: Quality,
    texts: Sequence[QualityText],
    text: Literal["built-in", "built-in, shortened", "own"],
    *,
    device: str | None,
    gate: str | None = None,
) -> QualityFacts:
    """Return what the manifest says.

    Args:
        quality: What was measured; at least one reading.
        texts: What was read.
        text: Where it is from.
        device: What ran the package, where that was measured.
        gate: What it has to keep to.
    """
    some = quality.as_run or quality.weights
    expected = None if some is None else some.total.expected_perplexity
    return QualityFacts(
        text=text,
        text_sha256=hash_texts(texts),
        num_tokens=quality.num_tokens,
        reference_perplexity=_interval(expected),
        weights=_reading(quality.weights),
        activations=_reading(quality.activations),
        as_run=_reading(quality.as_run),
        device=None if quality.as_run is None else device,
        gate=gate,
    )


def make_details(quality: Quality) -> dict[str, Any]:
    """Return what the manifest leaves out, for programs: by kind, by position, by layer.

    Args:
        quality: What was measured.
    """
    readings = {
        "weights": quality.weights,
        "activations": quality.activations,
        "as_run": quality.as_run,
    }
    return {
        "readings": {
            name: {
                "by_kind": {kind: _figures_json(figures) for kind, figures in loss.by_kind.items()},
                "by_position": [
                    {"from": first, "to": end, **_figures_json(figures)}
                    for (first, end), figures in loss.by_position.items()
                ],
            }
            for name, loss in readings.items()
            if loss is not None
        },
        "layers": [
            {"alone": shorten_number(layer.alone), "carried": shorten_number(layer.carried)}
            for layer in quality.layers
        ],
    }


def hash_texts(texts: Sequence[QualityText]) -> str:
    """Return the SHA-256 of what was read, as token ids."""
    content = json.dumps([text.token_ids for text in texts]).encode("ascii")
    return hashlib.sha256(content).hexdigest()


def describe_figures(figures: Figures) -> ReadingFacts:
    """Return figures as they are written down.

    Args:
        figures: Of any positions.
    """
    expected, found = figures.expected_perplexity, figures.found_perplexity
    ratio = None
    if expected is not None and found is not None and math.isfinite(found.value):
        ratio = shorten_number(found.value / expected.value)
    return ReadingFacts(
        kl=_finite(figures.mean_kl),
        kl_p99=_finite(figures.upper_kl),
        top1=_finite(figures.top1),
        top5=_finite(figures.top5),
        perplexity=_interval(found),
        perplexity_ratio=ratio,
    )


def shorten_number(value: float) -> float:
    """Return a number with four significant digits."""
    return float(f"{value:.{_DIGITS}g}")


def _figures_json(figures: Figures) -> dict[str, Any]:
    return {"num_positions": figures.num_positions, **to_json(describe_figures(figures))}


def _reading(loss: Loss | None) -> ReadingFacts | None:
    return None if loss is None else describe_figures(loss.total)


def _finite(estimate: Estimate) -> IntervalFacts:
    return IntervalFacts(*map(shorten_number, (estimate.value, estimate.low, estimate.high)))


def _interval(estimate: Estimate | None) -> IntervalFacts | None:
    """Return an estimate, or None where there is none or it is no finite number."""
    if estimate is None:
        return None
    parts = (estimate.value, estimate.low, estimate.high)
    return _finite(estimate) if all(map(math.isfinite, parts)) else None
