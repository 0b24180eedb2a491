"""Compare the ONNX form of a package with onnxruntime-genai's own model. Last line: JSON.

    python scripts/bench_onnx.py PACKAGE BUILDER_MODEL [--rounds 5]

BUILDER_MODEL is what onnxruntime-genai makes of the same checkpoint:

    python -m onnxruntime_genai.models.builder -i CHECKPOINT -o BUILDER_MODEL -p int4 -e cpu

Three loops take turns in one process, as in `bench_runtime.py`: the package in this runtime, the
builder's model in onnxruntime-genai, and the builder's model in a bare loop over ONNX Runtime,
which tells the graph's share from the program's. Ratios above 1 mean that the package is faster;
they are medians of the pairs' own ratios.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_runtime import HAND_OVER_TOKENS, Loop, make_runtime_loop, measure_round

from qwen_edge.runtime import load
from qwen_edge.runtime.devices.providers import import_onnxruntime

OTHERS = ("genai", "bare_loop")


def make_genai_loop(folder: Path, max_tokens: int) -> Loop:
    """Return onnxruntime-genai's own loop, greedy."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(folder))

    def loop(prompt_ids: list[int]) -> Iterator[int]:
        params = onnxruntime_genai.GeneratorParams(model)
        # Without a bound it would reserve a cache for the whole context.
        params.set_search_options(max_length=max_tokens, do_sample=False)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array(prompt_ids, np.int32))
        while True:
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return loop


def make_bare_loop(folder: Path, max_tokens: int) -> Loop:
    """Return the least that can be written over a session with a shared cache buffer."""
    ort: Any = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    decoder = json.loads((folder / "genai_config.json").read_bytes())["model"]["decoder"]
    shape = (1, decoder["num_key_value_heads"], max_tokens, decoder["head_size"])
    binding = session.io_binding()
    for entry in session.get_inputs():
        if entry.name.startswith("past_key_values"):
            value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            binding.bind_ortvalue_input(entry.name, value)
            present = entry.name.replace("past_key_values", "present")
            binding.bind_ortvalue_output(present, value)

    def feed(ids: list[int], past: int) -> int:
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, past + len(ids)), np.int64))
        binding.bind_output("logits")  # anew: its shape follows the input's
        session.run_with_iobinding(binding)
        return int(binding.get_outputs()[-1].numpy()[0, -1].argmax())

    def loop(prompt_ids: list[int]) -> Iterator[int]:
        token = feed(prompt_ids, 0)
        for past in count(len(prompt_ids)):
            yield token
            token = feed([token], past)

    return loop


def main() -> None:
    """Run the rounds and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("builder_model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=16)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    max_tokens = arguments.prompt_tokens + arguments.new_tokens + 2
    prefills: list[dict[str, float]] = []
    decodes: list[dict[str, float]] = []
    with load(arguments.package, backend="onnx", device="CPU", verify="sizes") as model:
        loops = {
            "runtime": make_runtime_loop(model),
            "genai": make_genai_loop(arguments.builder_model, max_tokens),
            "bare_loop": make_bare_loop(arguments.builder_model, max_tokens),
        }
        for number in range(arguments.rounds + 1):
            prompt = generator.integers(0, model.backend.vocab_size, arguments.prompt_tokens)
            order = sorted(loops, reverse=number % 2 == 0)
            prefill, decode = measure_round(loops, order, prompt.tolist(), arguments.new_tokens)
            print(f"{prefill} {decode[-1]}", file=sys.stderr, flush=True)
            if number:  # the first inference of each shape is slower
                prefills.append(prefill)
                decodes += decode
    result: dict[str, Any] = {"prompt_tokens": arguments.prompt_tokens, "rounds": arguments.rounds}
    for key, pairs, tokens in (
        ("prefill", prefills, arguments.prompt_tokens),
        ("decode", decodes, HAND_OVER_TOKENS),
    ):
        for name in loops:
            result[f"{name}_{key}_tokens_per_s"] = round(tokens / median(p[name] for p in pairs), 3)
        for name in OTHERS:
            ratio = median(pair[name] / pair["runtime"] for pair in pairs)
            result[f"{key}_ratio_to_{name}"] = round(ratio, 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
