"""What onnxruntime-genai must know to run a package's ONNX model: its `genai_config.json`.

That program reads the names of inputs and outputs, the sizes of the cache and its defaults for
sampling from this file, and refuses keys it does not know. Nothing of ours reads it. The
graph's side of the agreement is in `onnx_graph.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_edge.runtime.files.writing import write_text
from qwen_edge.runtime.manifest import MODEL_ONNX, GenerationFacts, ModelFacts, OnnxFacts
from qwen_edge.runtime.text_tokenizer import TextTokenizer

GENAI_CONFIG = "genai_config.json"

# Tokens of prompt and answer together that are reserved before the first one is computed: in the
# shared buffer every token costs 4 bytes per value of the cache, 288 KiB for Qwen3-4B. This many
# are 1.2 GB there; its whole context of 40,960 would be 12 GB. A caller may ask for more.
DEFAULT_MAX_LENGTH = 4_096
# Into what ONNX Runtime cuts a row with one scale when it makes its own operators of standard
# ones; as in `onnx_weights.py`. At its own choice, 32, int8 needs a tenth more memory, and the
# head of Qwen3-4B takes 19.9 ms instead of 16.4 (1.31, 2 cores).
_ROW_BLOCK_SIZE = 128

# Source: onnxruntime-genai 0.18, models/builder.py, add_special_token_ids.
_MARKERS = {
    "bot_token_id": "<tool_call>",
    "eot_token_id": "</tool_call>",
    "bor_token_id": "<think>",
    "eor_token_id": "</think>",
}


def build_genai_config(
    model: ModelFacts,
    onnx: OnnxFacts,
    generation: GenerationFacts,
    tokenizer: TextTokenizer,
    configs: Sequence[Mapping[str, object]],
) -> dict[str, Any]:
    """Describe a package's ONNX model to onnxruntime-genai.

    Args:
        model: The network's shape.
        onnx: How its ONNX model was written.
        generation: The model's own sampling defaults.
        tokenizer: The package's tokenizer.
        configs: Where the ids of padding and of the beginning are stated: the checkpoint's
            generation_config.json, where it has one, and its config.json.

    Returns:
        The file's object.

    Source:
        onnxruntime-genai 0.18, src/config.h and models/builders/base.py. Positions are not an
        input: the graph counts the mask.
    """
    ids: dict[str, int | list[int]] = {"eos_token_id": list(generation.eos_token_ids)}
    beginning = _find_id("bos_token_id", configs, model.vocab_size)
    if beginning is not None:
        ids["bos_token_id"] = beginning
    padding = _find_id("pad_token_id", configs, model.vocab_size)
    ids["pad_token_id"] = generation.eos_token_ids[-1] if padding is None else padding
    for key, marker in _MARKERS.items():
        if marker in tokenizer.added_tokens:
            ids[key] = tokenizer.added_tokens[marker]
    return {
        "model": {
            **ids,
            "type": model.model_type,
            "vocab_size": model.vocab_size,
            "context_length": onnx.max_context_tokens,
            "decoder": _decoder(model, onnx),
        },
        "search": _search(generation, onnx, model.vocab_size),
    }


def write_genai_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the file into a folder; the same object gives the same bytes on every system."""
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_text(folder / GENAI_CONFIG, text)


def _decoder(model: ModelFacts, onnx: OnnxFacts) -> dict[str, Any]:
    options: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    if onnx.is_portable:
        # What the fast form says in its own operators, ONNX Runtime is told when it makes them.
        options["session.qdq_matmulnbits_accuracy_level"] = str(onnx.accuracy_level)
        options["session.qdq_matmulnbits_block_size"] = str(_ROW_BLOCK_SIZE)
    return {
        "filename": MODEL_ONNX,
        "session_options": options,
        "hidden_size": model.hidden_size,
        "head_size": model.head_dim,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "num_hidden_layers": model.num_layers,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _search(generation: GenerationFacts, onnx: OnnxFacts, vocab_size: int) -> dict[str, Any]:
    """Return the defaults of sampling; `min_p` has no place in the file."""
    # A temperature of 0 means the best token, which that program says with `do_sample`.
    is_sampled = generation.do_sample and generation.temperature > 0
    return {
        "do_sample": is_sampled,
        "temperature": generation.temperature if is_sampled else 1.0,
        "top_k": min(generation.top_k, vocab_size),  # more is refused
        "top_p": generation.top_p,
        "repetition_penalty": 1.0,
        "min_length": 0,
        "max_length": min(DEFAULT_MAX_LENGTH, onnx.max_context_tokens),
        "num_beams": 1,
        "num_return_sequences": 1,
        # The fast form writes into the cache it is given; the portable one returns a longer one.
        "past_present_share_buffer": not onnx.is_portable,
    }


def _find_id(key: str, configs: Sequence[Mapping[str, object]], vocab_size: int) -> int | None:
    """Return the first id that is stated and lies in the vocabulary."""
    for config in configs:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size:
            return value
    return None
