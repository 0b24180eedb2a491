"""genai_config.json: what it says, and that onnxruntime-genai runs the model with it.

That program runs in a process of its own: it sends telemetry unless told otherwise before it
is loaded, and a fault in it would end the process that runs the tests.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qwen_edge.export
from qwen_edge.export.decoder import read_spec
from qwen_edge.export.genai_config import (
    DEFAULT_MAX_LENGTH,
    build_genai_config,
    write_genai_config,
)
from qwen_edge.export.onnx_files import write_onnx_model
from qwen_edge.export.package_facts import generation_facts, model_facts
from qwen_edge.runtime.manifest import GenerationFacts, ModelFacts, OnnxFacts
from qwen_edge.runtime.text_tokenizer import TextTokenizer

CheckpointMaker = Callable[..., Path]
StoreMaker = Callable[..., Any]

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
CONTEXT = 512
NUM_STEPS = 64
PROMPT = [999, 310, 41, 592, 653, 58, 97, 932, 384, 62, 643, 38]
FAST = OnnxFacts(
    opset=21,
    is_portable=False,
    max_context_tokens=CONTEXT,
    prefill_chunk_tokens=256,
    accuracy_level=4,
)
PORTABLE = replace(FAST, is_portable=True)
# Loads the folder, reads a prompt and answers: greedily, then by the file's own defaults.
SCRIPT = """
import json, sys
import onnxruntime_genai as genai
folder, count, prompt = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
model = genai.Model(folder)
answers = []
for options in ({"do_sample": False}, {}):
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + count, **options)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt)
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    answers.append(tokens)
    del generator
ids = [int(token) for token in genai.Tokenizer(model).encode("<|im_start|>user\\nHello!")]
print(json.dumps({"greedy": answers[0], "sampled": answers[1], "ids": ids}))
"""


@pytest.fixture(scope="module")
def demo_config() -> dict[str, Any]:
    """Return the demo model's config.json."""
    config: dict[str, Any] = json.loads((DEMO / "config.json").read_bytes())
    return config


@pytest.fixture(scope="module")
def model(demo_config: dict[str, Any]) -> ModelFacts:
    """Return the demo model's shape."""
    return model_facts(read_spec(demo_config), CONTEXT)


@pytest.fixture(scope="module")
def generation(demo_config: dict[str, Any]) -> GenerationFacts:
    """Return the demo model's own defaults."""
    return generation_facts(DEMO, demo_config, demo_config["vocab_size"])


def test_the_demo_model_is_described(
    model: ModelFacts, generation: GenerationFacts, demo_tokenizer: TextTokenizer
) -> None:
    stated = json.loads((DEMO / "generation_config.json").read_bytes())
    config = build_genai_config(model, FAST, generation, demo_tokenizer, [stated])
    assert config["search"].pop("past_present_share_buffer") is True
    assert config["search"] == {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.0,
        "min_length": 0,
        "max_length": CONTEXT,
        "num_beams": 1,
        "num_return_sequences": 1,
    }
    decoder = config["model"].pop("decoder")
    assert config["model"] == {
        "type": "qwen3",
        "vocab_size": 1024,
        "context_length": CONTEXT,
        "eos_token_id": [1000, 998],
        "bos_token_id": 998,
        "pad_token_id": 998,
        "bot_token_id": demo_tokenizer.added_tokens["<tool_call>"],
        "eot_token_id": demo_tokenizer.added_tokens["</tool_call>"],
        "bor_token_id": demo_tokenizer.added_tokens["<think>"],
        "eor_token_id": demo_tokenizer.added_tokens["</think>"],
    }
    sizes = {key: value for key, value in decoder.items() if isinstance(value, int)}
    assert sizes == {
        "hidden_size": 256,
        "head_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
    }
    assert "session.qdq_matmulnbits_accuracy_level" not in decoder["session_options"]


def test_the_portable_form_is_told_how_to_be_fused(
    model: ModelFacts, generation: GenerationFacts, demo_tokenizer: TextTokenizer
) -> None:
    config = build_genai_config(model, PORTABLE, generation, demo_tokenizer, [])
    assert config["search"]["past_present_share_buffer"] is False
    options = config["model"]["decoder"]["session_options"]
    assert options["session.qdq_matmulnbits_accuracy_level"] == "4"
    assert options["session.qdq_matmulnbits_block_size"] == "128"


@pytest.mark.parametrize(
    ("context", "expected"), [(512, 512), (4_096, 4_096), (40_960, 4_096)], ids=str
)
def test_no_more_is_reserved_than_a_laptop_has(
    model: ModelFacts,
    generation: GenerationFacts,
    demo_tokenizer: TextTokenizer,
    context: int,
    expected: int,
) -> None:
    """The shared buffer is allocated for `max_length` at once, in float32."""
    facts = replace(FAST, max_context_tokens=context)
    config = build_genai_config(model, facts, generation, demo_tokenizer, [])
    assert config["model"]["context_length"] == context
    assert config["search"]["max_length"] == expected
    qwen3_4b_bytes = DEFAULT_MAX_LENGTH * 2 * 36 * 8 * 128 * 4
    assert qwen3_4b_bytes < 1.3e9


@pytest.mark.parametrize(
    ("configs", "bos", "pad"),
    [
        ([], None, 998),
        ([{"bos_token_id": 1, "pad_token_id": 2}, {"bos_token_id": 3, "pad_token_id": 4}], 1, 2),
        ([{"pad_token_id": None}, {"bos_token_id": 3, "pad_token_id": 4}], 3, 4),
        ([{"bos_token_id": 1024, "pad_token_id": -1}], None, 998),
        ([{"bos_token_id": True, "pad_token_id": "2"}], None, 998),
    ],
    ids=["nothing-stated", "first-wins", "null-is-not-stated", "outside", "not-an-id"],
)
def test_ids_come_from_where_they_are_stated(
    model: ModelFacts,
    generation: GenerationFacts,
    demo_tokenizer: TextTokenizer,
    configs: list[dict[str, Any]],
    bos: int | None,
    pad: int,
) -> None:
    found = build_genai_config(model, FAST, generation, demo_tokenizer, configs)["model"]
    assert (found.get("bos_token_id"), found["pad_token_id"]) == (bos, pad)


def test_sampling_stays_within_what_that_program_takes(
    model: ModelFacts, generation: GenerationFacts, demo_tokenizer: TextTokenizer
) -> None:
    """It refuses a `top_k` beyond the vocabulary; no temperature means no sampling."""
    odd = replace(generation, temperature=0.0, top_k=2**31 - 1)
    search = build_genai_config(model, FAST, odd, demo_tokenizer, [])["search"]
    assert (search["do_sample"], search["temperature"]) == (False, 1.0)
    assert search["top_k"] == model.vocab_size


def test_the_file_is_plain_and_always_the_same(tmp_path: Path) -> None:
    config = {"model": {"type": "é"}, "a": [1]}
    write_genai_config(tmp_path, config)
    expected = b'{\n  "a": [\n    1\n  ],\n  "model": {\n    "type": "\\u00e9"\n  }\n}\n'
    assert (tmp_path / "genai_config.json").read_bytes() == expected


def answer_in_genai(folder: Path, count: int) -> dict[str, list[int]]:
    """Return what onnxruntime-genai answers, run in a process of its own."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(count), json.dumps(PROMPT)],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return answer


# Checkpoint (None is the demo model), recipe, form.
RUNS: dict[str, tuple[tuple[str, dict[str, Any]] | None, str, OnnxFacts]] = {
    "demo-fast": (None, "int4-awq", FAST),
    "demo-portable": (None, "int4-awq", PORTABLE),
    "demo-fp16": (None, "fp16", FAST),
    "demo-int8-portable": (None, "int8", PORTABLE),
    "qwen2": (("qwen2", {"tie_word_embeddings": False}), "int4", FAST),
    "llama": (("llama", {"num_key_value_heads": 4}), "int4", FAST),
}


@pytest.mark.parametrize("name", RUNS)
def test_onnxruntime_genai_answers_as_the_model_does(
    tmp_path: Path,
    generation: GenerationFacts,
    demo_tokenizer: TextTokenizer,
    make_checkpoint: CheckpointMaker,
    compress_checkpoint: StoreMaker,
    open_onnx: Any,
    name: str,
) -> None:
    """Greedy tokens are those of a bare loop; the file's own sampling is accepted as well.

    Nothing ends the greedy answer before its length: id 0 is no token of these texts.
    """
    case, recipe, facts = RUNS[name]
    checkpoint = DEMO if case is None else make_checkpoint(tmp_path / "c", case[0], **case[1])
    folder = tmp_path / "package"
    folder.mkdir()
    spec, store = compress_checkpoint(tmp_path / "spool", checkpoint, recipe)
    with store:
        write_onnx_model(
            spec, store, folder, max_context_tokens=CONTEXT, is_portable=facts.is_portable
        )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / file, folder / file)
    endless = replace(generation, eos_token_ids=(0,))
    config = build_genai_config(model_facts(spec, CONTEXT), facts, endless, demo_tokenizer, [])
    write_genai_config(folder, config)
    answer = answer_in_genai(folder, NUM_STEPS)

    options = config["model"]["decoder"]["session_options"]
    entries = {key: value for key, value in options.items() if key.startswith("session.")}
    run = open_onnx(folder, 4, **entries)
    tokens = [int(run.forward(PROMPT).argmax())]
    while len(tokens) < NUM_STEPS:
        tokens.append(int(run.forward(tokens[-1:]).argmax()))
    assert answer["greedy"] == tokens
    # Sampling may come upon id 0 by chance, which ends it.
    assert 1 <= len(answer["sampled"]) <= NUM_STEPS
    assert answer["ids"] == demo_tokenizer.encode("<|im_start|>user\nHello!", allow_special=True)
