"""Files of the `demo` model beside its tokenizer: configuration and the model card's table.

Owns what a Qwen3 checkpoint folder says about its shape and its quality. Qwen3's special tokens
and chat template are read from the folder itself, so nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # demo_network needs torch; this module does not
    from demo_network import Shape
    from tokenizers import Tokenizer

MAX_CONTEXT_TOKENS = 4096  # what the cache may hold; trained lengths are in the model card
TABLE_MARKS = ("<!-- results: start -->", "<!-- results: end -->")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file `path`."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` as Hugging Face writes its JSON files."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def write_config(folder: Path, shape: Shape, tokenizer: Tokenizer) -> None:
    """Write `config.json` and `generation_config.json`."""
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    end_of_turn = tokenizer.token_to_id("<|im_end|>")
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_turn,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": MAX_CONTEXT_TOKENS,
        "max_window_layers": shape.num_layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }
    write_json(folder / "config.json", config)
    sampling = {
        "bos_token_id": end_of_text,
        "do_sample": True,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
        "temperature": 0.6,  # Qwen3's own values for thinking
        "top_k": 20,
        "top_p": 0.95,
        "transformers_version": "4.51.0",
    }
    write_json(folder / "generation_config.json", sampling)


def results_table(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of exact matches before and after int4."""
    lines = ["| task | held out | exact, bf16 | exact, int4 |", "| --- | --- | --- | --- |"]
    for task, row in results.items():
        shares = [f"{row[kind]} ({row[kind] / row['samples']:.1%})" for kind in ("bf16", "int4")]
        lines.append(f"| {task} | {row['samples']} | {shares[0]} | {shares[1]} |")
    return "\n".join(lines)


def write_results(card: Path, results: dict[str, dict[str, Any]], note: str) -> None:
    """Replace the table between the marks of the model card `card`."""
    text = card.read_text(encoding="utf-8")
    before, rest = text.split(TABLE_MARKS[0])
    after = rest.split(TABLE_MARKS[1])[1]
    middle = f"{TABLE_MARKS[0]}\n{note}\n\n{results_table(results)}\n{TABLE_MARKS[1]}"
    card.write_text(before + middle + after, encoding="utf-8", newline="\n")
