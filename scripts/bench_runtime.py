"""Measure the runtime on a full-size package, each part against its plain form. Last line: JSON.

    python scripts/bench_runtime.py PACKAGE [--demo PACKAGE] [--rounds 7] [--parts loop,lookup]

`loop` compares the token loop with a bare one over OpenVINO's infer request: both use one compiled
model, each through an infer request of its own, and what differs is the loop alone. The bare one
is the least that can be written: feed ids, mask and positions, take the likeliest token. Prompts
are computed in turn, changing who goes first; decoding changes hands every few tokens, so that a
slow second of the machine weighs on both. Ratios above 1 mean that the runtime is faster; they are
medians of the pairs' own ratios. `lookup`, `forced` and `demo` are in `bench_decoding.py`, `turns`
and `snapshot` in `bench_reuse.py`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_decoding import measure_demo, measure_forced, measure_scripts
from bench_reuse import measure_second_turn, measure_snapshot

from qwen_edge.runtime import SamplingParams
from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.backends.decoder_backend import DecoderBackend
from qwen_edge.runtime.backends.decoder_making import make_decoder_backend
from qwen_edge.runtime.backends.decoder_preparing import Prepared, prepare_decoder
from qwen_edge.runtime.decoding.draft_estimates import CALL_SIZES
from qwen_edge.runtime.kernels import CACHE, KvCache, find_kernels
from qwen_edge.runtime.manifest import CHAT_TEMPLATE, MODEL_XML, TOKENIZER_JSON, DeviceSettings
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.package import check_sizes, read_manifest
from qwen_edge.runtime.text_tokenizer import TextTokenizer

Loop = Callable[[list[int]], Iterator[int]]
"""Starts on a prompt and yields one token after the other."""

HAND_OVER_TOKENS = 4  # half a second at full size: shorter than the machine's slow spells


@dataclass(frozen=True)
class ModelPair:
    """One compiled model, and two of the runtime's on it, each with a cache of its own."""

    models: tuple[Model, Model]
    compiled: Any
    prepared: Prepared
    settings: DeviceSettings


def open_models(package: Path, device: str) -> ModelPair:
    """Compile a package once and make two models on it."""
    manifest = read_manifest(package)
    check_sizes(package, manifest)
    settings = next(entry for entry in manifest.devices if entry.device == device)
    ir = read_ir(package / MODEL_XML)
    prepared = prepare_decoder(ir, device, settings.properties)
    compiled = compile_model(ir, device, prepared.properties)
    tokenizer = TextTokenizer.load(package / TOKENIZER_JSON)
    template = (package / CHAT_TEMPLATE).read_text(encoding="utf-8")

    def make_model() -> Model:
        backend = make_decoder_backend(
            compiled,
            prepared,
            device=device,
            max_context_tokens=settings.max_context_tokens,
            prefill_chunk_tokens=settings.prefill_chunk_tokens,
        )
        warm_up(backend)
        return Model(backend, tokenizer, template, manifest)

    return ModelPair((make_model(), make_model()), compiled, prepared, settings)


def warm_up(backend: DecoderBackend) -> None:
    """Make a call of each size that speculation makes, as loading a package does."""
    for size in (16, 1, *CALL_SIZES):
        backend.forward_scored([0] * size, num_scored=size)
    backend.reset()


def make_bare_loop(compiled: Any, prepared: Prepared, chunk_tokens: int) -> Loop:
    """Return the bare loop over an infer request of the compiled model."""
    request = compiled.create_infer_request()
    library = find_kernels().path
    cache = None
    if prepared.cache is not None and library is not None:
        cache = KvCache(library, prepared.cache)

    def feed(ids: list[int], past: int) -> Any:
        end = past + len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "position_ids": np.arange(past, end, dtype=np.int64)[None],
        }
        if cache is not None:
            inputs[CACHE] = np.array([cache.number, past], np.int32)
        else:
            inputs["attention_mask"] = np.ones((1, end), np.int64)
            inputs["beam_idx"] = np.zeros(1, np.int32)
        return request.infer(inputs)[0]

    def loop(prompt_ids: list[int]) -> Iterator[int]:
        if cache is None:
            request.reset_state()
        for begin in range(0, len(prompt_ids), chunk_tokens):
            logits = feed(prompt_ids[begin : begin + chunk_tokens], begin)
        for past in count(len(prompt_ids)):
            token = int(logits[0, -1].argmax())
            yield token
            logits = feed([token], past)

    return loop


def make_runtime_loop(model: Model) -> Loop:
    """Return the runtime's token loop. No two prompts may begin alike: it would reuse its cache."""
    greedy = SamplingParams(temperature=0)
    return lambda prompt_ids: model.generate(
        prompt_ids, sampling=greedy, max_new_tokens=1 << 20, speculate=False
    )


def take(tokens: Iterator[int], num_tokens: int) -> float:
    """Take tokens and return the seconds it took."""
    start = time.perf_counter()
    for _ in range(num_tokens):
        next(tokens)
    return time.perf_counter() - start


def measure_round(
    loops: dict[str, Loop], order: list[str], prompt: list[int], num_tokens: int
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Run every loop once on one prompt.

    Args:
        loops: By name.
        order: Who goes first.
        prompt: Token ids.
        num_tokens: New tokens after the first, a multiple of `HAND_OVER_TOKENS`.

    Returns:
        Seconds until the first token, and per hand-over seconds of `HAND_OVER_TOKENS` tokens.
    """
    running = {name: loops[name](prompt) for name in order}
    prefill = {name: take(running[name], 1) for name in order}
    decode = []
    for number in range(num_tokens // HAND_OVER_TOKENS):
        turn = order if number % 2 == 0 else order[::-1]
        decode.append({name: take(running[name], HAND_OVER_TOKENS) for name in turn})
    for tokens in running.values():
        close = getattr(tokens, "close", None)
        if close is not None:
            close()
    return prefill, decode


PARTS = ("loop", "lookup", "forced", "demo", "turns", "snapshot")


def measure_loop(pair: ModelPair, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the runtime's loop with the bare one."""
    model = pair.models[0]
    generator = np.random.default_rng(0)
    prefills: list[dict[str, float]] = []
    decodes: list[dict[str, float]] = []
    loops = {
        "runtime": make_runtime_loop(model),
        "bare_loop": make_bare_loop(
            pair.compiled, pair.prepared, pair.settings.prefill_chunk_tokens
        ),
    }
    for number in range(arguments.rounds + 1):
        prompt = generator.integers(0, model.backend.vocab_size, arguments.prompt_tokens)
        order = sorted(loops, reverse=number % 2 == 0)
        prefill, decode = measure_round(loops, order, prompt.tolist(), arguments.new_tokens)
        print(f"{prefill} {decode[-1]}", file=sys.stderr, flush=True)
        if number:  # the first inference of each shape is slower
            prefills.append(prefill)
            decodes += decode
    result: dict[str, Any] = {}
    for key, pairs, tokens in (
        ("prefill", prefills, arguments.prompt_tokens),
        ("decode", decodes, HAND_OVER_TOKENS),
    ):
        for name in loops:
            result[f"{name}_{key}_tokens_per_s"] = round(tokens / median(p[name] for p in pairs), 3)
        result[f"{key}_ratio"] = round(median(p["bare_loop"] / p["runtime"] for p in pairs), 4)
    return result


def measure_part(
    part: str, pair: ModelPair, demo: ModelPair | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run one part."""
    rounds = arguments.rounds
    if part == "loop":
        return measure_loop(pair, arguments)
    if part == "lookup":
        return measure_scripts(pair.models, rounds)
    if part == "forced":
        return measure_forced(pair.models, rounds)
    if part == "demo":
        if demo is None:
            raise SystemExit("the part `demo` needs --demo PACKAGE")
        return measure_demo(demo.models, 5 * rounds)
    if part == "turns":
        return measure_second_turn(pair.models[0], min(rounds, 3), 2_000)
    return measure_snapshot(pair.models[0], min(rounds, 3), 1_000)


def main() -> None:
    """Run the parts and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--demo", type=Path, help="a package of a model that copies")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--parts", default=",".join(PARTS), help=", ".join(PARTS))
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--parts are of: {', '.join(PARTS)}")
    pair = open_models(arguments.package, arguments.device)
    demo = open_models(arguments.demo, arguments.device) if arguments.demo else None
    result: dict[str, Any] = {"prompt_tokens": arguments.prompt_tokens, "rounds": arguments.rounds}
    for part in parts:
        result |= measure_part(part, pair, demo, arguments)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
