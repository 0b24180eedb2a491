"""Write a checkpoint with a published shape and random weights.

Speed, memory and file formats do not depend on the values of the weights, so the full
size can be exported and run without a download. Bounded memory: one block of rows at a
time. The same shape and seed give the same bytes.

    python scripts/make_random_checkpoint.py --shape qwen3-4b ./random-4b
"""

import argparse
import gzip
import json
import lzma
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwen_edge.export.decoder import DecoderSpec, read_spec

TOKENIZER_FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "qwen3_tokenizer"
WEIGHT_STD = 0.02  # initializer_range of Qwen3's config.json
BLOCK_VALUES = 1 << 24  # 64 MB of float32 at a time
SHARD_BYTES = 4_000_000_000  # save_pretrained splits near 5 GB; Qwen3-4B ships 4 GB shards

# Source: config.json of Qwen/Qwen3-4B, -1.7B and -0.6B; `tiny` is ours, for seconds of work.
_COMMON: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": WEIGHT_STD,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def _sizes(
    num_layers: int, hidden: int, inter: int, heads: int, kv_heads: int, head_dim: int
) -> dict[str, object]:
    return _COMMON | {
        "num_hidden_layers": num_layers,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


SHAPES: dict[str, dict[str, object]] = {
    "qwen3-4b": _sizes(36, 2560, 9728, 32, 8, 128),
    "qwen3-4b-layer": _sizes(1, 2560, 9728, 32, 8, 128),  # with its whole embedding
    "qwen3-1.7b": _sizes(28, 2048, 6144, 16, 8, 128),
    "qwen3-0.6b": _sizes(28, 1024, 3072, 16, 8, 128),
    "tiny": _sizes(2, 128, 256, 4, 2, 32),
}
GENERATION_CONFIG = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
}


def iter_rows(
    shape: Sequence[int], generator: np.random.Generator, *, is_norm: bool
) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield one tensor's values as bfloat16 bits, block by block, in row order.

    Args:
        shape: Dimensions of the tensor.
        generator: Source of the values; advances.
        is_norm: Norm weights lie around 1, all others around 0.

    Yields:
        uint16 [values], at most `BLOCK_VALUES` each.
    """
    remaining = int(np.prod(shape))
    while remaining:
        count = min(remaining, BLOCK_VALUES)
        values = generator.standard_normal(count, dtype=np.float32)
        values *= np.float32(WEIGHT_STD)
        if is_norm:
            values += np.float32(1)
        yield (values.view(np.uint32) >> 16).astype(np.uint16)
        remaining -= count


def split_shards(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """Cut the list of tensors into shards of at most `SHARD_BYTES`."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if filled and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Write one safetensors file.

    Args:
        path: The file to write.
        shapes: Tensor name to shape, in file order.
        seed: Together with each tensor's name it fixes the values.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for aligned data
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name, shape in shapes.items():
            generator = np.random.default_rng([seed, *name.encode()])
            for block in iter_rows(shape, generator, is_norm="norm" in name):
                block.tofile(file)


def write_tokenizer(folder: Path) -> None:
    """Unpack Qwen3's own tokenizer files into the checkpoint folder."""
    for source in sorted(TOKENIZER_FOLDER.iterdir()):
        if source.suffix in {".xz", ".gz"}:
            opener = lzma.open if source.suffix == ".xz" else gzip.open
            with opener(source, "rb") as packed, (folder / source.stem).open("wb") as file:
                shutil.copyfileobj(packed, file)
        elif source.suffix == ".json":
            shutil.copyfile(source, folder / source.name)


def write_checkpoint(config: dict[str, object], folder: Path, seed: int) -> DecoderSpec:
    """Write config, weights and tokenizer; return what was written.

    Args:
        config: The content of config.json.
        folder: Created when it does not exist.
        seed: Fixes every value.
    """
    spec = read_spec(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(
        json.dumps(GENERATION_CONFIG, indent=2) + "\n", encoding="utf-8"
    )
    write_tokenizer(folder)
    shards = split_shards(spec.tensor_shapes())
    if len(shards) == 1:
        write_shard(folder / "model.safetensors", shards[0], seed)
        return spec
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        print(f"writing {name}", file=sys.stderr)
        write_shard(folder / name, shapes, seed)
        weight_map.update(dict.fromkeys(shapes, name))
    index = {"metadata": {"total_size": 2 * spec.num_parameters}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2) + "\n", encoding="utf-8"
    )
    return spec


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("folder", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    spec = write_checkpoint(SHAPES[arguments.shape], arguments.folder, arguments.seed)
    print(
        json.dumps(
            {
                "folder": str(arguments.folder),
                "num_parameters": spec.num_parameters,
                "weights_bytes": 2 * spec.num_parameters,
            }
        )
    )


if __name__ == "__main__":
    main()
