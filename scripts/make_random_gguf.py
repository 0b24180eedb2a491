"""Write a GGUF file in Q4_0 with a package's shape and random weights, for llama.cpp.

    python scripts/make_random_gguf.py PACKAGE OUT.gguf

Types of the tensors are those that llama.cpp's own quantiser gives this shape: matrices in Q4_0,
the embedding that is also the head in Q6_K, norms in float32. Speed and memory do not depend on the
values. The tokenizer is the package's own, so that loading takes as long as it really does.
Needs `gguf`, which is on PyPI. The same shape gives the same bytes; one tensor is in memory at a
time.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.export.decoder import DecoderSpec, read_spec

Bytes = npt.NDArray[np.uint8]

ARCHITECTURE = "qwen3"
WEIGHT_STD = 0.02
# Name of a tensor in a checkpoint's layer → in a GGUF file's.
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
# Source: ggml-common.h. Q4_0: 32 values in a float16 scale and 16 bytes. Q8_0: a scale and 32.
# Q6_K: 256 values in 128 + 64 bytes of bits, 16 scales of int8 and a float16 one.
Q4_0_BLOCK, Q4_0_BYTES = 32, 18
Q8_0_BYTES = 34
Q6_K_BLOCK, Q6_K_BYTES = 256, 210


def gguf_names(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Return every tensor's name in the file with its shape, in file order.

    Args:
        spec: The model's shape.
    """
    names = {}
    for name, shape in spec.tensor_shapes().items():
        if name in GLOBAL_NAMES:
            names[GLOBAL_NAMES[name]] = shape
            continue
        _, _, number, rest = name.split(".", 3)  # model.layers.3.mlp.up_proj.weight
        part, kind = rest.rsplit(".", 1)
        names[f"blk.{number}.{LAYER_NAMES[part]}.{kind}"] = shape
    return names


def choose_type(name: str, shape: Sequence[int]) -> str:
    """Return the type that llama.cpp's quantiser gives a tensor of a Q4_0 model.

    Source:
        llama_tensor_get_type of llama.cpp's src/llama-quant.cpp: head and tied embedding Q6_K,
        Q8_0 where rows are no multiple of 256.
    """
    if len(shape) == 1:
        return "F32"
    if name in ("token_embd.weight", "output.weight"):
        return "Q6_K" if shape[1] % Q6_K_BLOCK == 0 else "Q8_0"
    if shape[1] % Q4_0_BLOCK:
        raise SystemExit(f"{name} has rows of {shape[1]:,}, which Q4_0 cannot hold")
    return "Q4_0"


def make_tensor(kind: str, shape: Sequence[int], generator: np.random.Generator) -> Bytes:
    """Return one tensor's random bytes, uint8 [rows, bytes of a row].

    Args:
        kind: "Q4_0", "Q8_0" or "Q6_K".
        shape: Rows and values of a row.
        generator: Source of the values; advances.
    """
    rows, width = shape
    if kind == "Q6_K":
        blocks = _random(generator, rows * width // Q6_K_BLOCK, Q6_K_BYTES)
        blocks[:, 192:208] = 16  # the scales of 16 values each
        blocks[:, 208:] = _half(WEIGHT_STD / 18.5 / 16)  # 18.5: deviation of 0 to 63
    elif kind == "Q8_0":
        blocks = _random(generator, rows * width // Q4_0_BLOCK, Q8_0_BYTES)
        blocks[:, :2] = _half(WEIGHT_STD / 73.9)
    else:
        blocks = _random(generator, rows * width // Q4_0_BLOCK, Q4_0_BYTES)
        blocks[:, :2] = _half(WEIGHT_STD / 4.6)
    return blocks.reshape(rows, -1)


def write_gguf(package: Path, output: Path) -> int:
    """Write the file; returns its size in bytes.

    Args:
        package: A package, or a checkpoint folder: its config.json and tokenizer.json are read.
        output: The file.
    """
    import gguf

    config = json.loads((package / "config.json").read_text(encoding="utf-8"))
    spec = read_spec(config)
    if not spec.has_qk_norm:
        raise SystemExit(f"the shape of {spec.architecture} is not known here, only Qwen3's")
    writer = gguf.GGUFWriter(output, ARCHITECTURE)
    _add_shape(writer, spec, gguf.LlamaFileType.MOSTLY_Q4_0)
    _add_tokenizer(writer, package / "tokenizer.json", spec.vocab_size)
    names = gguf_names(spec)
    kinds = {name: choose_type(name, shape) for name, shape in names.items()}
    for name, shape in names.items():
        kind = gguf.GGMLQuantizationType[kinds[name]]
        if kinds[name] == "F32":
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
            continue
        block, size = gguf.GGML_QUANT_SIZES[kind]
        row_bytes = shape[1] // block * size
        byte_shape = (shape[0], row_bytes)
        num_bytes = shape[0] * row_bytes
        writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), num_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in names.items():
        generator = np.random.default_rng([0, *name.encode()])
        if kinds[name] == "F32":
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            writer.write_tensor_data(make_tensor(kinds[name], shape, generator))
    writer.close()
    return output.stat().st_size


def _add_shape(writer: Any, spec: DecoderSpec, file_type: int) -> None:
    """Write the numbers that llama.cpp builds the graph from."""
    writer.add_name("random")
    writer.add_file_type(file_type)
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_rope_freq_base(spec.rope.theta)


def _add_tokenizer(writer: Any, path: Path, vocab_size: int) -> None:
    """Write the vocabulary and the merges of a byte-level tokenizer."""
    data = json.loads(path.read_text(encoding="utf-8"))
    normal, control, unused = 1, 3, 5  # gguf.TokenType
    texts = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [unused] * vocab_size
    for text, index in data["model"]["vocab"].items():
        texts[index], types[index] = text, normal
    for entry in data["added_tokens"]:
        texts[entry["id"]], types[entry["id"]] = entry["content"], control
    merges = data["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    )


def _random(generator: np.random.Generator, num_blocks: int, block_bytes: int) -> Bytes:
    values = np.frombuffer(generator.bytes(num_blocks * block_bytes), np.uint8)
    return values.reshape(num_blocks, block_bytes).copy()


def _half(value: float) -> Bytes:
    return np.array([value], "<f2").view(np.uint8)


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("output", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    size_bytes = write_gguf(arguments.package, arguments.output)
    print(json.dumps({"file": str(arguments.output), "size_bytes": size_bytes}))


if __name__ == "__main__":
    main()
