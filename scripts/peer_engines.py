"""One way of answering for each program that `bench_peers.py` compares.

Each opens a model and returns a function that reads a prompt and makes tokens, greedy and without
a stop, and says how long the first one and the others took. Prompts are token ids, so that nobody's
tokenizer counts. Run as a program it is one such engine, which answers the lines of its input:

    python scripts/peer_engines.py NAME MODEL NUM_THREADS MAX_TOKENS
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from qwen_edge.errors import EdgeError
from qwen_edge.runtime.machine.process_memory import read_process_memory

Answer = Callable[[list[int], int], tuple[float, float]]
"""Answers a prompt with so many tokens; returns seconds to the first, and of the others."""

MARK = "qwen-edge-peer"  # what an engine prints on its own does not have it
BATCH_TOKENS = 512  # what a prompt is cut into; llama.cpp's own default is 512 at a time, too


def open_qwen_edge(model: Path, threads: int, max_tokens: int) -> Answer:
    """Open a package as `load` does, with this machine's tuned settings where there are some."""
    del threads, max_tokens  # its own choice
    from qwen_edge.runtime.benchmark.measure import time_answer
    from qwen_edge.runtime.loading import load

    # The caller warms up, as for the others; what is compared is what follows.
    opened = load(model, warm_up=False)

    def answer(prompt_ids: list[int], new_tokens: int) -> tuple[float, float]:
        times = time_answer(opened, prompt_ids, new_tokens)
        return times.ttft_s, times.decode_s

    return answer


def open_openvino_genai(model: Path, threads: int, max_tokens: int) -> Answer:
    """Open a package in OpenVINO GenAI with its defaults."""
    del threads, max_tokens
    from qwen_edge.runtime.engine import import_openvino

    ov = import_openvino()
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(model), "CPU")

    def answer(prompt_ids: list[int], new_tokens: int) -> tuple[float, float]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        begun_s = time.perf_counter()
        result = pipeline.generate(ov.Tensor(np.array([prompt_ids], np.int64)), config)
        total_s = time.perf_counter() - begun_s
        made = len(result.tokens[0])
        if made != new_tokens:
            raise SystemExit(f"it made {made:,} tokens, not {new_tokens:,}")
        first_s = result.perf_metrics.get_ttft().mean / 1e3
        return first_s, total_s - first_s

    return answer


def open_llama_cpp(model: Path, threads: int, max_tokens: int) -> Answer:
    """Open a GGUF file in llama.cpp, with its own defaults but for the number of threads.

    The binding's default is half of the threads, llama.cpp's own all physical cores.
    """
    import llama_cpp

    opened = llama_cpp.Llama(
        str(model),
        n_ctx=max_tokens,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    context = opened.ctx

    def feed(token_ids: Sequence[int]) -> int:
        for start in range(0, len(token_ids), BATCH_TOKENS):
            part = token_ids[start : start + BATCH_TOKENS]
            array = (llama_cpp.llama_token * len(part))(*part)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(part))):
                raise SystemExit("llama_decode refused")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(opened.n_vocab(),)).argmax())

    def answer(prompt_ids: list[int], new_tokens: int) -> tuple[float, float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        begun_s = time.perf_counter()
        token = feed(prompt_ids)
        first_s = time.perf_counter() - begun_s
        for _ in range(new_tokens - 1):
            token = feed([token])
        return first_s, time.perf_counter() - begun_s - first_s

    return answer


def open_onnxruntime_genai(model: Path, threads: int, max_tokens: int) -> Answer:
    """Open a package's ONNX model in onnxruntime-genai.

    Left alone it takes one thread for it; it is given all physical cores.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai

    config = onnxruntime_genai.Config(str(model))
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    opened = onnxruntime_genai.Model(config)

    def answer(prompt_ids: list[int], new_tokens: int) -> tuple[float, float]:
        params = onnxruntime_genai.GeneratorParams(opened)
        # It reserves a cache of this length.
        params.set_search_options(max_length=max_tokens, do_sample=False)
        generator = onnxruntime_genai.Generator(opened, params)
        begun_s = time.perf_counter()
        generator.append_tokens(np.array(prompt_ids, np.int32))
        generator.generate_next_token()
        first_s = time.perf_counter() - begun_s
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        return first_s, time.perf_counter() - begun_s - first_s

    return answer


ENGINES: Mapping[str, tuple[Callable[[Path, int, int], Answer], str, str]] = {
    "qwen-edge": (open_qwen_edge, "qwen_edge.runtime", "qwen-edge"),
    "openvino-genai": (open_openvino_genai, "openvino_genai", "openvino-genai"),
    "llama.cpp": (open_llama_cpp, "llama_cpp", "llama-cpp-python"),
    "onnxruntime-genai": (open_onnxruntime_genai, "onnxruntime_genai", "onnxruntime-genai"),
}
"""Name → how it is opened, the module that has to be there, and the package's name."""


def find_version(name: str) -> str | None:
    """Return the version of an engine's package; None where it is not installed."""
    try:
        return metadata.version(ENGINES[name][2])
    except metadata.PackageNotFoundError:
        return None


def tell(facts: Mapping[str, Any]) -> None:
    """Write one line that only `bench_peers.py` reads."""
    sys.stdout.write(json.dumps({MARK: facts}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Open a model, then answer each line of standard input: [[prompt ids], new tokens]."""
    name, model, threads, max_tokens = sys.argv[1:]
    try:
        answer = ENGINES[name][0](Path(model), int(threads), int(max_tokens))
    except EdgeError as error:
        sys.exit(error.problem)
    tell({"is_open": True})
    for line in sys.stdin:
        prompt_ids, new_tokens = json.loads(line)
        first_s, rest_s = answer(prompt_ids, new_tokens)
        memory = read_process_memory()
        private = None if memory is None else memory.private_bytes
        tell({"first_s": first_s, "rest_s": rest_s, "private_bytes": private})


if __name__ == "__main__":
    main()
