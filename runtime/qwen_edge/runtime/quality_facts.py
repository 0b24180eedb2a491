"""What a package's manifest says of what the export cost the model: data and words only.

`qwen_edge.export.quality` measures it. KL is the Kullback-Leibler divergence of the package's
next-token distribution from the checkpoint's, in nats; figures have four significant digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ReadingName = Literal["as_run", "activations", "weights"]
READING_NAMES: Mapping[ReadingName, str] = {
    "weights": "weights alone",
    "activations": "and activations",
    "as_run": "and cache: as it runs",
}
"""The readings as a person knows them, from the least that is rounded to the most."""


@dataclass(frozen=True)
class IntervalFacts:
    """A figure, and the interval that holds it in 95 of 100 draws of texts like these."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ReadingFacts:
    """What one reading of the package gave.

    `kl_p99` is the 99th percentile over positions, `top1` the share of positions with the same
    likeliest token, `top5` the mean share of the five likeliest that are the same.
    `perplexity_ratio` is the package's by the checkpoint's; None where a figure is not finite.
    """

    kl: IntervalFacts
    kl_p99: IntervalFacts
    top1: IntervalFacts
    top5: IntervalFacts
    perplexity: IntervalFacts | None
    perplexity_ratio: float | None


@dataclass(frozen=True)
class QualityFacts:
    """What an export lost.

    `weights` is the loss by stored weights alone, computed in float32; `activations` that with
    the device's arithmetic and an exact cache; `as_run` that with the cache as well. None where
    it could not be measured. `device` ran the last two. `is_loss_accepted` says that somebody had
    a package sealed that would have been refused.
    """

    text: Literal["built-in", "built-in, shortened", "own"]
    text_sha256: str
    num_tokens: int
    reference_perplexity: IntervalFacts | None
    weights: ReadingFacts | None
    activations: ReadingFacts | None
    as_run: ReadingFacts | None
    device: str | None
    gate: str | None = None
    is_loss_accepted: bool = False

    @property
    def decisive(self) -> tuple[ReadingName, ReadingFacts]:
        """The reading that counts: as the package runs where that is known, else the weights'."""
        if self.as_run is not None:
            return "as_run", self.as_run
        if self.weights is None:
            raise ValueError("quality without a reading")
        return "weights", self.weights

    @property
    def readings(self) -> dict[ReadingName, ReadingFacts]:
        """The readings that there are, from the least that is rounded to the most."""
        found: dict[ReadingName, ReadingFacts | None] = {
            "weights": self.weights,
            "activations": self.activations,
            "as_run": self.as_run,
        }
        return {name: reading for name, reading in found.items() if reading is not None}


def describe_quality(quality: QualityFacts) -> str:
    """Return what was lost in a sentence, without a full stop."""
    name, reading = quality.decisive
    where = f"as it runs on {quality.device}" if name == "as_run" else "by its weights alone"
    return (
        f"KL {reading.kl.value:.3g} to the checkpoint ({reading.kl.low:.3g} to "
        f"{reading.kl.high:.3g}), same likeliest token at {100 * reading.top1.value:.1f} % of "
        f"{quality.num_tokens:,} positions, {where}"
    )
