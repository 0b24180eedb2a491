"""What a benchmark measured, and what follows from it: medians, and shares of the machine's limits.

Data and arithmetic; nothing is run here. `measure.py` fills it, `report.py` tells it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from qwen_edge.runtime.benchmark.cold_start import ColdStart
from qwen_edge.runtime.benchmark.work import ModelWork
from qwen_edge.runtime.machine.process_memory import ProcessMemory
from qwen_edge.runtime.machine.roofline import Roofline


@dataclass(frozen=True)
class AnswerTimes:
    """One prompt with its answer, in seconds; the first token belongs to the prompt."""

    ttft_s: float
    decode_s: float


@dataclass(frozen=True)
class Round:
    """What one round measured: an answer for each length, and the machine's limits beside them.

    `roofline` is None where the model does not run on the CPU, whose limits they are.
    """

    answers: tuple[AnswerTimes, ...]
    roofline: Roofline | None


@dataclass(frozen=True)
class LengthFigures:
    """Medians for one length.

    Args:
        prompt_tokens: Length of the prompt.
        ttft_s: Seconds to the first token.
        prefill_tokens_per_s: Prompt tokens per second until then.
        decode_tokens_per_s: New tokens per second after it.
        prefill_share: Of the speed that int8 arithmetic would allow; None where not known.
        decode_share: Of the speed that reading memory would allow; None where not known.
    """

    prompt_tokens: int
    ttft_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_share: float | None
    decode_share: float | None


@dataclass(frozen=True)
class BenchmarkResult:
    """What a package does here.

    Args:
        model: The package's name.
        backend: Which engine ran it.
        device: Where.
        device_reason: Why there.
        new_tokens: Length of the answers.
        left_out: Lengths that do not fit the package's context here.
        cold_starts: Starts from nothing, in order; the first may still have met a cold disk.
        load_s: Loading in this process, without the warm-up.
        loaded_memory: What the process held when the model was loaded, before it ran.
        memory: What it held at the end, after the longest prompt.
        lengths: Figures by length.
        roofline: Medians of the machine's limits; None where the model does not run on the CPU.
        rounds: All that was measured, in order.
    """

    model: str
    backend: str
    device: str
    device_reason: str
    new_tokens: int
    left_out: tuple[int, ...]
    cold_starts: tuple[ColdStart, ...]
    load_s: float
    loaded_memory: ProcessMemory | None
    memory: ProcessMemory | None
    lengths: tuple[LengthFigures, ...]
    roofline: Roofline | None
    rounds: tuple[Round, ...]

    @property
    def cold_start(self) -> ColdStart | None:
        """The start with the median total; None where none was made."""
        ordered = sorted(self.cold_starts, key=lambda start: start.total_s)
        return ordered[(len(ordered) - 1) // 2] if ordered else None


def summarise(
    lengths: Sequence[int], new_tokens: int, rounds: Sequence[Round], work: ModelWork
) -> tuple[LengthFigures, ...]:
    """Return medians over the rounds.

    Args:
        lengths: In the order of the rounds' answers.
        new_tokens: Tokens of each answer; at least 2.
        rounds: At least one.
        work: What a token costs.
    """
    figures = []
    for index, length in enumerate(lengths):
        prefill = [length / entry.answers[index].ttft_s for entry in rounds]
        decode = [(new_tokens - 1) / entry.answers[index].decode_s for entry in rounds]
        macs = work.prefill_macs(length)
        read = work.decode_bytes(length + new_tokens / 2)
        roofs = [entry.roofline for entry in rounds]
        most_prefill = [roof.most_prefill_tokens_per_s(macs) if roof else None for roof in roofs]
        most_decode = [roof.most_decode_tokens_per_s(read) if roof else None for roof in roofs]
        figures.append(
            LengthFigures(
                prompt_tokens=length,
                ttft_s=median(entry.answers[index].ttft_s for entry in rounds),
                prefill_tokens_per_s=median(prefill),
                decode_tokens_per_s=median(decode),
                prefill_share=_median_share(prefill, most_prefill),
                decode_share=_median_share(decode, most_decode),
            )
        )
    return tuple(figures)


def _median_share(speeds: Iterable[float], limits: Iterable[float | None]) -> float | None:
    shares = [
        speed / limit for speed, limit in zip(speeds, limits, strict=True) if limit is not None
    ]
    return median(shares) if shares else None


def median_roofline(rooflines: Iterable[Roofline | None]) -> Roofline | None:
    """Return the medians of both limits; None where there are none."""
    known = [roofline for roofline in rooflines if roofline is not None]
    if not known:
        return None
    macs = [roof.int8_macs_per_s for roof in known if roof.int8_macs_per_s is not None]
    bandwidth = median(roof.bandwidth_bytes_per_s for roof in known)
    return Roofline(bandwidth, median(macs) if macs else None)
