"""Measures a package on this machine: a start from nothing, prompts, answers, memory.

In each round every length is measured once, and the machine's own limits right beside it, so that
a slow second weighs on both; what is told are medians over the rounds, shares of a limit as
medians of the rounds' own shares. Prompts are random ids that nothing can be reused of, answers
are greedy and not ended by a stop token. What follows from the times is in `figures.py`.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from qwen_edge.errors import MissingExtraError, UsageError
from qwen_edge.profiles.choose import AUTO
from qwen_edge.runtime.benchmark.cold_start import ColdStart, measure_cold_start, read_through
from qwen_edge.runtime.benchmark.figures import (
    AnswerTimes,
    BenchmarkResult,
    Round,
    median_roofline,
    summarise,
)
from qwen_edge.runtime.benchmark.options import DEFAULT_PROMPT_TOKENS, BenchmarkOptions
from qwen_edge.runtime.benchmark.prompts import RandomPrompts
from qwen_edge.runtime.benchmark.work import count_work
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.devices.opening import choose_formats
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.loading import check_load_options, load
from qwen_edge.runtime.machine.process_memory import read_process_memory
from qwen_edge.runtime.machine.roofline import Roofline, measure_bandwidth, measure_int8_throughput
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.package import Progress, read_manifest
from qwen_edge.runtime.verified import check_verified

_COLD_PROMPT_TOKENS = 32
_LIMIT_SECONDS = 0.3  # of each of the machine's limits, in each round
_WARM_UP_TOKENS = 3  # of the answers that are not counted

Steps = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much; 0 when unknown."""


def run_benchmark(
    folder: Path,
    options: BenchmarkOptions | None = None,
    *,
    device: str = AUTO,
    backend: str = AUTO,
    threads: int | None = None,
    progress: Progress | None = None,
    steps: Steps = lambda step, done, total: None,
) -> BenchmarkResult:
    """Measure a package.

    Args:
        folder: The package.
        options: What to measure.
        device: As for `load`.
        backend: As for `load`.
        threads: As for `load`; the machine's limits are measured with as many.
        progress: As for `load`.
        steps: Told what is being done.

    Raises:
        EdgeError: As `load` and `measure_cold_start`.
        UsageError: A length that was asked for does not fit.
    """
    options = options or BenchmarkOptions()
    check_load_options(backend, threads, "first")
    where: _Where = {"device": device, "backend": backend, "threads": threads}
    manifest = read_manifest(folder)
    choose_formats(folder, manifest, backend=backend, device=device)  # refuses before hashing
    check_verified(folder, manifest, cache_dir=read_environment().cache_dir, progress=progress)
    read_through(folder, manifest.files)
    prompts = RandomPrompts(manifest.model.vocab_size)
    cold_starts = []
    for number in range(options.cold_starts):
        steps("cold starts", number, options.cold_starts)
        prompt_ids = prompts.make(_COLD_PROMPT_TOKENS)
        cold_starts.append(measure_cold_start(folder, prompt_ids, **where))
    steps("load", 0, 0)
    begun_s = time.perf_counter()
    with load(folder, **where, warm_up=False) as model:
        load_s = time.perf_counter() - begun_s
        return _measure_loaded(
            model,
            folder,
            manifest,
            options,
            threads=threads,
            steps=steps,
            starts=(tuple(cold_starts), load_s),
        )


def _measure_loaded(
    model: Model,
    folder: Path,
    manifest: Manifest,
    options: BenchmarkOptions,
    *,
    threads: int | None,
    steps: Steps,
    starts: tuple[tuple[ColdStart, ...], float],
) -> BenchmarkResult:
    """Measure an opened package; `starts` are the starts from nothing, and seconds to load."""
    loaded_memory = read_process_memory()
    choice = model.device_choice
    assert choice is not None and model.backend_name != "fake"  # it was opened from a package
    settings = choice.value
    lengths, left_out = choose_lengths(model, options)
    limits = _limits_of(settings.device, threads)
    rounds = measure_rounds(model, lengths, options, measure_limits=limits, steps=steps)
    work = count_work(folder, manifest, settings, model.backend_name)
    return BenchmarkResult(
        model=model.name,
        backend=model.backend_name,
        device=settings.device,
        device_reason=choice.reason,
        new_tokens=options.new_tokens,
        left_out=left_out,
        cold_starts=starts[0],
        load_s=starts[1],
        loaded_memory=loaded_memory,
        memory=read_process_memory(),
        lengths=summarise(lengths, options.new_tokens, rounds, work),
        roofline=median_roofline(entry.roofline for entry in rounds),
        rounds=tuple(rounds),
    )


def choose_lengths(
    model: Model, options: BenchmarkOptions
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the lengths to measure, and those that do not fit.

    Raises:
        UsageError: One that was asked for does not fit, or none of the usual ones does.
    """
    most = model.max_context_tokens - options.new_tokens
    if model.max_prompt_tokens is not None:
        most = min(most, model.max_prompt_tokens)
    wanted = options.prompt_tokens or DEFAULT_PROMPT_TOKENS
    left_out = tuple(length for length in wanted if length > most)
    fitting = tuple(length for length in wanted if length <= most)
    if not fitting or (left_out and options.prompt_tokens is not None):
        raise UsageError(
            f"A prompt of {left_out[0]:,} tokens and an answer of {options.new_tokens:,} do not "
            f"fit: the context holds {model.max_context_tokens:,} tokens here"
            + (f", {most:,} of a prompt." if most > 0 else "."),
            f"measure prompts of up to {most:,} tokens."
            if most > 0
            else "measure shorter answers: --new-tokens 2",
            prompt_tokens=left_out,
            max_prompt_tokens=most,
        )
    return fitting, left_out


def measure_rounds(
    model: Model,
    lengths: Sequence[int],
    options: BenchmarkOptions,
    *,
    measure_limits: Callable[[], Roofline | None],
    steps: Steps = lambda step, done, total: None,
) -> list[Round]:
    """Measure every length once a round, until the rounds or the time are over.

    Args:
        model: Nobody else may use it meanwhile.
        lengths: Of the prompts; each fits.
        options: How many rounds, and for how long.
        measure_limits: Called once a round.
        steps: Told which round it is.

    State:
        Leaves the model's cache empty.
    """
    prompts = RandomPrompts(model.backend.vocab_size)
    steps("warm up", 0, 0)
    for length in lengths:  # the first call of every shape is slower than all that follow
        time_answer(model, prompts.make(length), min(options.new_tokens, _WARM_UP_TOKENS))
    rounds: list[Round] = []
    begun_s = time.perf_counter()
    while len(rounds) < options.rounds:
        steps("rounds", len(rounds), options.rounds)
        limits = measure_limits()
        answers = {
            length: time_answer(model, prompts.make(length), options.new_tokens)
            for length in (lengths if len(rounds) % 2 == 0 else lengths[::-1])
        }
        rounds.append(Round(tuple(answers[length] for length in lengths), limits))
        taken_s = time.perf_counter() - begun_s
        if taken_s + taken_s / len(rounds) > options.seconds:
            break
    steps("rounds", options.rounds, options.rounds)
    model.backend.reset()
    return rounds


def time_answer(model: Model, prompt_ids: Sequence[int], new_tokens: int) -> AnswerTimes:
    """Time a prompt on an empty cache, and an answer of a fixed length.

    Args:
        model: Nobody else may use it meanwhile.
        prompt_ids: At least one id.
        new_tokens: At least 1.
    """
    backend = model.backend
    backend.reset()
    tokens = generate_tokens(
        backend,
        prompt_ids,
        picker=TokenPicker(Sampler(SamplingParams(temperature=0))),
        max_new_tokens=new_tokens,
        prefill_chunk_tokens=model.prefill_chunk_tokens,
    )
    begun_s = time.perf_counter()
    next(tokens)
    first_s = time.perf_counter()
    for _ in tokens:
        pass
    return AnswerTimes(first_s - begun_s, time.perf_counter() - first_s)


class _Where(TypedDict):
    """Which engine and device, as the caller asked for it."""

    device: str
    backend: str
    threads: int | None


def _limits_of(device: str, threads: int | None) -> Callable[[], Roofline | None]:
    """Return what measures the limits of a device; only the CPU's can be."""

    def measure() -> Roofline | None:
        if device != "CPU":
            return None
        bandwidth = measure_bandwidth(seconds=_LIMIT_SECONDS, threads=threads)
        try:
            return Roofline(
                bandwidth, measure_int8_throughput(seconds=_LIMIT_SECONDS, threads=threads)
            )
        except MissingExtraError:
            return Roofline(bandwidth, None)

    return measure
