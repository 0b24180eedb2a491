"""Compare the runtime with a bare loop over OpenVINO's infer request. Last line: JSON.

    python scripts/bench_runtime.py PACKAGE [--rounds 5]

Both run the same package with the same settings in one process, in interleaved rounds that
change who goes first. The bare loop is the least that can be written: feed ids, mask and
positions, take the likeliest token. Figures are medians; ratios above 1 mean the runtime is
faster.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qwen_edge.runtime import SamplingParams, load
from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.model import Model

Figures = tuple[float, float]
"""Seconds until the first token, and seconds for the tokens after it."""


def make_bare_loop(package: Path, model: Model) -> Callable[[list[int], int], Figures]:
    """Compile the package once more and return the bare loop over it."""
    assert model.device_choice is not None
    settings = model.device_choice.value
    ir = read_ir(package / "openvino_model.xml")
    keep_last_logits(ir)
    request = compile_model(ir, settings.device, settings.properties).create_infer_request()
    chunk_tokens = settings.prefill_chunk_tokens

    def feed(ids: list[int], past: int) -> Any:
        count = len(ids)
        return request.infer(
            {
                "input_ids": np.array([ids], np.int64),
                "attention_mask": np.ones((1, past + count), np.int64),
                "position_ids": np.arange(past, past + count, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )[0]

    def loop(prompt_ids: list[int], num_tokens: int) -> Figures:
        request.reset_state()
        start = time.perf_counter()
        for begin in range(0, len(prompt_ids), chunk_tokens):
            logits = feed(prompt_ids[begin : begin + chunk_tokens], begin)
        token = int(logits[0, -1].argmax())
        first = time.perf_counter()
        for step in range(num_tokens - 1):
            logits = feed([token], len(prompt_ids) + step)
            token = int(logits[0, -1].argmax())
        return first - start, time.perf_counter() - first

    return loop


def run_runtime(model: Model, prompt_ids: list[int], num_tokens: int) -> Figures:
    """Generate through the runtime's token loop; the prompt must share no beginning with the
    one before, or the runtime would reuse its cache."""
    start = time.perf_counter()
    first = start
    greedy = SamplingParams(temperature=0)
    tokens = model.generate(prompt_ids, sampling=greedy, max_new_tokens=num_tokens)
    for index, _ in enumerate(tokens):
        if index == 0:
            first = time.perf_counter()
    return first - start, time.perf_counter() - first


def main() -> None:
    """Run the rounds and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=33)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    with load(arguments.package, verify="sizes") as model:
        loop = make_bare_loop(arguments.package, model)
        model.wait_until_warm()
        contestants: dict[str, Callable[[list[int], int], Figures]] = {
            "runtime": lambda prompt, count: run_runtime(model, prompt, count),
            "bare_loop": loop,
        }
        figures: dict[str, list[Figures]] = {name: [] for name in contestants}
        for number in range(arguments.rounds + 1):
            prompt = generator.integers(
                0, model.backend.vocab_size, arguments.prompt_tokens
            ).tolist()
            order = list(contestants) if number % 2 == 0 else list(reversed(contestants))
            for name in order:
                seconds = contestants[name](prompt, arguments.new_tokens)
                print(f"{name}: {seconds}", file=sys.stderr, flush=True)
                if number:  # the first inference of each shape is slower
                    figures[name].append(seconds)
    result: dict[str, Any] = {"prompt_tokens": arguments.prompt_tokens, "rounds": arguments.rounds}
    for name, rounds in figures.items():
        result[name] = {
            "prefill_tokens_per_s": round(
                arguments.prompt_tokens / median(prefill for prefill, _ in rounds), 2
            ),
            "decode_tokens_per_s": round(
                (arguments.new_tokens - 1) / median(decode for _, decode in rounds), 3
            ),
        }
    for key in ("prefill", "decode"):
        # Paired: each round's ratio, then the median, so that slow rounds weigh on neither.
        pairs = zip(figures["bare_loop"], figures["runtime"], strict=True)
        index = 0 if key == "prefill" else 1
        result[f"{key}_ratio"] = round(median(bare[index] / ours[index] for bare, ours in pairs), 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
