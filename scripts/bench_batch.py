"""Compare concurrent requests with the same ones one after another. Last line: JSON.

    python scripts/bench_batch.py PACKAGE [--requests 8] [--new-tokens 32] [--single]

Both run on one compiled model over blocks, in turn; between two runs everything cached is
forgotten. Answers are compared by the logits they were taken from, bit for bit: a model with
random weights has near ties at every token, so that equal tokens are no matter of luck. With
`--single` the engine for one conversation, loaded for itself, answers the same prompts.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime import SamplingParams
from qwen_edge.runtime.batching.batch_opening import open_batch_backend
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.batching.generate_batch import generate_batch
from qwen_edge.runtime.batching.paged import PagedBatchBackend
from qwen_edge.runtime.batching.scheduler import ContinuousBatcher
from qwen_edge.runtime.decoding.constraint import Bitmask
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler
from qwen_edge.runtime.devices.openvino_opening import open_openvino_backend
from qwen_edge.runtime.machine.process_memory import read_process_memory
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import check_sizes, read_manifest

GREEDY = SamplingParams(temperature=0)
Prompts = list[list[int]]


class Recorder(Sampler):
    """Takes the likeliest token and keeps what it was taken from."""

    def __init__(self) -> None:
        super().__init__(GREEDY)
        self.seen: list[npt.NDArray[np.float32]] = []
        self.times_s: list[float] = []

    def sample(self, logits: npt.NDArray[np.float32], mask: Bitmask | None = None) -> int:
        """Return the likeliest token."""
        self.seen.append(logits)
        self.times_s.append(time.perf_counter())
        return super().sample(logits, mask)


def answer(
    backend: PagedBatchBackend, prompts: Prompts, num_new: int, *, options: BatchOptions
) -> tuple[float, list[Recorder]]:
    """Answer prompts at once, on an empty cache; return the seconds and what was seen."""
    backend.reset()
    batcher = ContinuousBatcher(backend, options)
    recorders = [Recorder() for _ in prompts]
    start = time.perf_counter()
    for _, result in generate_batch(
        batcher,
        prompts,
        make_picker=lambda index: TokenPicker(recorders[index]),
        max_new_tokens=num_new,
    ):
        if result.error is not None:
            raise result.error
    return time.perf_counter() - start, recorders


def answer_one_by_one(
    backend: PagedBatchBackend, prompts: Prompts, num_new: int
) -> tuple[float, list[Recorder]]:
    """Answer prompts one after the other, each on an empty cache."""
    runs = [answer(backend, [prompt], num_new, options=BatchOptions()) for prompt in prompts]
    return sum(seconds for seconds, _ in runs), [seen[0] for _, seen in runs]


def count_equal(first: Sequence[Recorder], second: Sequence[Recorder]) -> int:
    """Return how many answers have bit for bit the same logits all along."""
    return sum(
        np.array_equal(np.stack(a.seen), np.stack(b.seen))
        for a, b in zip(first, second, strict=True)
    )


def measure_rounds(
    backend: PagedBatchBackend, prompts: Prompts, num_new: int, num_rounds: int
) -> tuple[dict[str, Any], list[Recorder]]:
    """Run both in turn; return the figures and what the answers were taken from."""
    options = BatchOptions(max_running=len(prompts))
    answer(backend, prompts, 2, options=options)  # the first inference of each shape is slower
    ratios, together_s, alone_s = [], [], []
    num_equal = len(prompts)
    for number in range(num_rounds):
        if number % 2:
            one, alone = answer_one_by_one(backend, prompts, num_new)
            both, together = answer(backend, prompts, num_new, options=options)
        else:
            both, together = answer(backend, prompts, num_new, options=options)
            one, alone = answer_one_by_one(backend, prompts, num_new)
        print(f"together {both:.1f} s, one by one {one:.1f} s", file=sys.stderr, flush=True)
        ratios.append(both / one)
        together_s.append(both)
        alone_s.append(one)
        num_equal = min(num_equal, count_equal(together, alone))
    return {
        "together_s": round(median(together_s), 3),
        "one_by_one_s": round(median(alone_s), 3),
        "ratio": round(median(ratios), 4),
        "num_answers": len(prompts),
        "num_bit_equal": num_equal,
    }, together


def measure_long_prompt(
    backend: PagedBatchBackend, prompt: list[int], short: list[int]
) -> dict[str, Any]:
    """Read a long prompt beside a running answer, and alone; compare what it leads to."""
    backend.reset()
    batcher = ContinuousBatcher(backend)
    running, reader = Recorder(), Recorder()
    batcher.submit(short, TokenPicker(running), max_new_tokens=1_000)
    for _ in range(3):
        batcher.step()
    num_before, start = len(running.seen), time.perf_counter()
    handle = batcher.submit(prompt, TokenPicker(reader), max_new_tokens=4)
    handle.wait()
    seconds = time.perf_counter() - start
    gaps = np.diff(running.times_s[num_before - 1 :])
    num_steps = len(running.seen) - num_before
    alone_s, alone = answer(backend, [prompt], 4, options=BatchOptions())
    return {
        "long_prompt_tokens": len(prompt),
        "long_prompt_beside_s": round(seconds, 3),
        "long_prompt_alone_s": round(alone_s, 3),
        "tokens_meanwhile": num_steps,
        "longest_gap_s": round(float(gaps.max()), 3),
        "long_prompt_bit_equal": bool(count_equal([reader], alone)),
    }


def measure_single(
    folder: Path, manifest: Manifest, prompts: Prompts, num_new: int, seen: list[Recorder]
) -> dict[str, Any]:
    """Answer one by one on the engine for one conversation; count the tokens that agree."""
    backend, _ = open_openvino_backend(folder, manifest, device="CPU")
    backend.forward(prompts[0])
    seconds, num_same, differences = 0.0, 0, []
    for prompt, recorder in zip(prompts, seen, strict=True):
        backend.reset()
        own = Recorder()
        start = time.perf_counter()
        list(generate_tokens(backend, prompt, picker=TokenPicker(own), max_new_tokens=num_new))
        seconds += time.perf_counter() - start
        differences.append(float(np.abs(own.seen[0] - recorder.seen[0]).max()))
        ids = [[int(row.argmax()) for row in each.seen] for each in (own, recorder)]
        num_same += next((i for i in range(num_new) if ids[0][i] != ids[1][i]), num_new)
    backend.close()
    return {
        "single_engine_s": round(seconds, 3),
        "single_engine_same_tokens": round(num_same / (num_new * len(prompts)), 4),
        "single_engine_largest_difference": round(max(differences), 4),
    }


def main() -> None:
    """Run and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--long-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--single", action="store_true", help="also the engine for one")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.package)
    check_sizes(arguments.package, manifest)
    opened = open_batch_backend(arguments.package, manifest, device="CPU")
    backend = opened.backend
    if not isinstance(backend, PagedBatchBackend):
        sys.exit("Error: this package does not run paged here.")
    generator = np.random.default_rng(0)

    def draw(num_tokens: int) -> list[int]:
        return [int(token) for token in generator.integers(0, backend.vocab_size, num_tokens)]

    base = arguments.prompt_tokens
    prompts = [draw(base + 5 * index) for index in range(arguments.requests)]
    figures, seen = measure_rounds(backend, prompts, arguments.new_tokens, arguments.rounds)
    figures |= measure_long_prompt(backend, draw(arguments.long_tokens), prompts[0])
    figures["cache_bytes"] = backend.cache_bytes
    memory = read_process_memory()
    figures["private_bytes"] = None if memory is None else memory.private_bytes
    backend.close()
    if arguments.single:
        del opened, backend
        gc.collect()
        figures |= measure_single(arguments.package, manifest, prompts, arguments.new_tokens, seen)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
