"""Run a decoder one layer at a time, in float32, so that it fits where the whole does not.

The texts' hidden states stay in memory (10 kB a token of Qwen3-4B), a layer's weights are read,
used for all texts and let go. The graph is the one that export builds, so whatever is compared
with this differs in weights and arithmetic, not in form. Positions count from 0 in every text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwen_edge.export.checkpoint import Checkpoint, widen
from qwen_edge.export.decoder import EMBEDDING_NAME, FINAL_NORM_NAME, DecoderSpec
from qwen_edge.export.openvino_graph import (
    WeightSource,
    build_embedding_model,
    build_layer_model,
)
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.engine import import_openvino

if TYPE_CHECKING:
    import openvino as ov
else:
    ov = import_openvino()

Hidden = npt.NDArray[np.float32]
"""float32 [tokens, hidden_size], of one text."""

EXACT_PROPERTIES: Mapping[str, str | bool | int] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "EXECUTION_MODE_HINT": "ACCURACY",
}
_ROWS_AT_ONCE = 256  # of logits: 156 MB of a vocabulary of 151,936
_HEAD_SLICE = 8_192  # rows of the head that are widened at a time: 84 MB of Qwen3-4B


class CheckpointWeights:
    """A checkpoint's tensors for the graph builder, widened as they are asked for.

    Args:
        checkpoint: Open as long as models built from this are used.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._lent: list[Any] = []

    def linear(self, name: str) -> Any:
        """Return a projection's weight, float32 [out, in]."""
        array = self._checkpoint.float32(name)
        tensor = ov.Tensor(array, shared_memory=True)
        self._lent += [array, tensor]
        constant = ov.op.Constant(tensor, True)
        constant.set_friendly_name(name)
        return constant.output(0)

    def embedding(self, name: str) -> Any:
        """Return a table; of a whole vocabulary, so better read rows of it."""
        return self.linear(name)

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or a bias, float32 [size]."""
        return self._checkpoint.float32(name)

    def activation_scale(self, name: str) -> None:
        """Return None: a checkpoint has none."""
        del name

    def release(self) -> None:
        """Let go of what models were built from; they must be gone."""
        self._lent.clear()


def embed_texts(checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> list[Hidden]:
    """Return what the first layer reads, text by text.

    Args:
        checkpoint: Its tensors.
        texts: Token ids of each, below the vocabulary's size.
    """
    table = checkpoint.raw(EMBEDDING_NAME)
    dtype = checkpoint.entries[EMBEDDING_NAME].dtype
    return [widen(table[np.array(text)], dtype) for text in texts]


def embed_with(
    spec: DecoderSpec, weights: WeightSource, texts: Sequence[Sequence[int]]
) -> list[Hidden]:
    """Return the same with a table that is computed, as a compressed one is.

    Args:
        spec: The architecture.
        weights: Where the table comes from.
        texts: Token ids of each, below the vocabulary's size.

    Raises:
        DeviceError: The CPU refuses the table.
    """
    model = build_embedding_model(spec, weights)
    request = compile_model(model, "CPU", EXACT_PROPERTIES).create_infer_request()
    return [np.array(request.infer([np.array([text], np.int64)])[0][0]) for text in texts]


def run_layer(
    spec: DecoderSpec, weights: WeightSource, layer_index: int, hidden: Sequence[Hidden]
) -> list[Hidden]:
    """Return what a layer makes of each text.

    Args:
        spec: The architecture.
        weights: Where the layer's weights come from.
        layer_index: From 0.
        hidden: What it reads, text by text.

    Raises:
        DeviceError: The CPU refuses the layer.
    """
    model = build_layer_model(spec, weights, layer_index)
    request = compile_model(model, "CPU", EXACT_PROPERTIES).create_infer_request()
    results = []
    for rows in hidden:
        count = len(rows)
        outputs = request.infer(
            {
                "hidden_states": rows[None],
                "attention_mask": np.ones((1, count), np.int64),
                "position_ids": np.arange(count, dtype=np.int64)[None],
            }
        )
        results.append(np.array(outputs[0][0]))
    return results


def run_checkpoint(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    texts: Sequence[Sequence[int]],
    *,
    after_layer: Callable[[int, Sequence[Hidden]], None] | None = None,
) -> list[Hidden]:
    """Return what a checkpoint's head reads, text by text.

    Args:
        spec: The architecture.
        checkpoint: Its tensors; read once each, and not kept.
        texts: Token ids of each.
        after_layer: Called with each layer's index and what it gave.

    Raises:
        DeviceError: The CPU refuses a layer.
    """
    hidden = embed_texts(checkpoint, texts)
    for layer_index in range(spec.num_layers):
        weights = CheckpointWeights(checkpoint)
        hidden = run_layer(spec, weights, layer_index, hidden)
        weights.release()
        if after_layer is not None:
            after_layer(layer_index, hidden)
    return hidden


def iterate_logits(
    spec: DecoderSpec, checkpoint: Checkpoint, hidden: Hidden
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield a text's logits, some positions at a time, float32 [positions, vocab_size].

    Args:
        spec: The architecture.
        checkpoint: Its tensors.
        hidden: What the head reads of the text.
    """
    norm = checkpoint.float32(FINAL_NORM_NAME)
    mean = np.mean(np.square(hidden, dtype=np.float64), axis=1, keepdims=True)
    scale = 1 / np.sqrt(mean + spec.rms_norm_eps)
    with np.errstate(over="ignore", invalid="ignore"):  # who compares refuses what is no number
        normed = (hidden * scale).astype(np.float32) * norm
    name = spec.head_weight_name
    head, dtype = checkpoint.raw(name), checkpoint.entries[name].dtype
    for start in range(0, len(normed), _ROWS_AT_ONCE):
        rows = normed[start : start + _ROWS_AT_ONCE]
        logits = np.empty((len(rows), spec.vocab_size), np.float32)
        for first in range(0, spec.vocab_size, _HEAD_SLICE):
            part = widen(head[first : first + _HEAD_SLICE], dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                np.matmul(rows, part.T, out=logits[:, first : first + len(part)])
        yield logits
