"""What a token costs by the model's shape: bytes to be read, and products to be computed.

With the machine's bandwidth and arithmetic (`machine/roofline.py`) these say how fast the model
could be at most. Nothing is measured here.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.runtime.manifest import (
    MODEL_BIN,
    MODEL_ONNX_DATA,
    DeviceSettings,
    FormatName,
    Manifest,
)
from qwen_edge.runtime.resources.memory import estimate_memory

_BYTES_OF = {"fp16": 2, "int8": 1}


@dataclass(frozen=True)
class ModelWork:
    """The work of one token.

    Args:
        weights_bytes: Weights that every new token reads: all but an embedding of its own.
        cache_bytes_per_token: What each token before it adds to that.
        weight_macs: Multiply-accumulates with the weights, for a token of a prompt. The output
            head is left out: it is computed for the last positions only.
        attention_macs_per_token: Multiply-accumulates that each token before it adds.
    """

    weights_bytes: int
    cache_bytes_per_token: int
    weight_macs: int
    attention_macs_per_token: int

    def decode_bytes(self, context_tokens: float) -> float:
        """Return the bytes that a new token reads after so many others."""
        return self.weights_bytes + self.cache_bytes_per_token * context_tokens

    def prefill_macs(self, prompt_tokens: int) -> float:
        """Return the products of a prompt's token, on average over the prompt."""
        return self.weight_macs + self.attention_macs_per_token * (prompt_tokens + 1) / 2


def count_work(
    folder: Path, manifest: Manifest, settings: DeviceSettings, fmt: FormatName
) -> ModelWork:
    """Count the work of a package's model.

    Args:
        folder: The package; only its `config.json` is read.
        manifest: The package's.
        settings: Of the device it runs on; they decide how the cache is stored.
        fmt: Which of the package's models runs.
    """
    model = manifest.model
    embedding = model.vocab_size * model.hidden_size
    is_tied = _is_tied(folder)
    name = MODEL_BIN if fmt == "openvino" else MODEL_ONNX_DATA
    weights_bytes = manifest.files[name].size_bytes
    if not is_tied:
        # A token reads one row of it.
        weights_bytes -= embedding * _BYTES_OF[manifest.recipe.embedding]
    return ModelWork(
        weights_bytes=max(weights_bytes, 1),
        cache_bytes_per_token=estimate_memory(manifest, settings, fmt).cache_bytes_per_token,
        weight_macs=max(model.num_parameters - embedding * (1 if is_tied else 2), 1),
        # Queries times keys, then weights times values.
        attention_macs_per_token=2 * model.num_layers * model.num_heads * model.head_dim,
    )


def _is_tied(folder: Path) -> bool:
    """Whether the output head is the embedding; False where the file does not say."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("tie_word_embeddings") is True
