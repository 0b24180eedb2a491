"""The operators of an ONNX decoder in the form that ONNX Runtime runs fastest.

One fused attention per layer with rotary embedding and cache inside, int4 and int8 matrix
products, residual sum and norm in one. They belong to ONNX Runtime (domain com.microsoft), and
its providers for GPUs and NPUs look for them. `portable_operators.py` says the same in standard
operators; `onnx_graph.py` puts either together.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qwen_edge.errors import UnsupportedArchitectureError
from qwen_edge.export.decoder import DecoderSpec, bias_name, layer_prefix
from qwen_edge.export.onnx_parts import GraphBuilder
from qwen_edge.export.onnx_weights import OnnxWeights, Rows
from qwen_edge.export.rope import inverse_frequencies

MICROSOFT = "com.microsoft"
ACCURACY_LEVEL = 4
"""How exact MatMulNBits' other operand must be: 4 is int8 in blocks, 1 is float32. The runtime
sets it anew at load. Source: ONNX Runtime 1.31, ContribOperators.md."""
_HEAD_DIM_STEP = 16


@dataclass(frozen=True)
class Heads:
    """What a layer attends with; each float32 [batch, length, its heads * head_dim]."""

    query: ir.Value
    key: ir.Value
    value: ir.Value


class Operators(Protocol):
    """What differs between the two forms of the graph."""

    def prepare(self, input_ids: ir.Value, attention_mask: ir.Value, past: ir.Value) -> None:
        """Add what all layers share; `past` is one layer's keys. Called once, first."""

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or bias, float32 [size]."""

    def embedding(self, name: str, input_ids: ir.Value) -> ir.Value:
        """Look up ids; float32 [batch, length, hidden]."""

    def linear(self, hidden: ir.Value, name: str, output: str) -> ir.Value:
        """Multiply by a matrix and add its bias; float32 [batch, length, out]."""

    def add_and_norm(
        self, hidden: ir.Value, delta: ir.Value, weight_name: str, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Return the sum, and the sum normed; each float32 [batch, length, hidden]."""

    def attention(
        self, heads: Heads, past: tuple[ir.Value, ir.Value], layer_index: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Attend with the cache; returns the output and the new keys and values.

        Args:
            heads: Not rotated.
            past: The layer's keys and values, float32 [batch, kv_heads, past, head_dim].
            layer_index: Which layer.

        Returns:
            float32 [batch, length, heads * head_dim], and what `past` becomes.
        """


class RuntimeOperators:
    """ONNX Runtime's own operators.

    Args:
        spec: The architecture.
        weights: The weights.
        builder: Receives nodes and initializers.
        max_context_tokens: Positions the rotary tables hold.

    Raises:
        UnsupportedArchitectureError: ONNX Runtime has no attention for heads of this size.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: OnnxWeights,
        builder: GraphBuilder,
        max_context_tokens: int,
    ) -> None:
        check_head_dim(spec.head_dim)
        self._spec = spec
        self._weights = weights
        self._builder = builder
        self._max_context_tokens = max_context_tokens
        self._lengths: tuple[ir.Value, ir.Value] | None = None
        self._tables: tuple[ir.Value, ir.Value] | None = None

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or bias, float32 [size]."""
        return self._weights.vector(name)

    def prepare(self, input_ids: ir.Value, attention_mask: ir.Value, past: ir.Value) -> None:
        """Turn the mask into lengths, and keep the rotary tables.

        The mask says how many tokens count, as other programs pass it; holes in it are not
        seen. GroupQueryAttention wants the last token's index per sequence, and the length.
        """
        del input_ids, past
        builder = self._builder
        count = builder.add(
            "ReduceSum", [attention_mask, builder.ints(1)], "model/num_tokens", {"keepdims": 0}
        )
        last = builder.add("Sub", [count, builder.ints(1)], "model/last_token")
        shape = builder.add("Shape", [attention_mask], "model/mask_shape")
        one = builder.constant(1, np.int64, "const_scalar_1")
        total = builder.add("Gather", [shape, one], "model/length", {"axis": 0})
        int32 = {"to": ir.DataType.INT32.value}
        self._lengths = (
            builder.add("Cast", [last], "model/seqlens_k", int32),
            builder.add("Cast", [total], "model/total_sequence_length", int32),
        )
        self._tables = self._rotary_tables()

    def embedding(self, name: str, input_ids: ir.Value) -> ir.Value:
        """Look up ids; the table is the same bytes as a tied head."""
        builder, output = self._builder, "model.embed_tokens"
        if self._weights.stored(name).format == "fp16":
            half = builder.initializer(self._weights.half(name))
            rows = builder.add("Gather", [half, input_ids], f"{output}/rows", {"axis": 0})
            return builder.add("Cast", [rows], output, {"to": ir.DataType.FLOAT.value})
        table, blocks = self._weights.table(name)
        inputs = [builder.initializer(table), input_ids, builder.initializer(blocks.scales)]
        if blocks.zero_points is not None:
            inputs.append(builder.initializer(blocks.zero_points))
        attributes = {
            "bits": blocks.bits,
            "block_size": blocks.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        return builder.add("GatherBlockQuantized", inputs, output, attributes, domain=MICROSOFT)

    def linear(self, hidden: ir.Value, name: str, output: str) -> ir.Value:
        """Multiply by a matrix and add its bias."""
        builder = self._builder
        if not self._spec.has_bias(name):
            return self._product(hidden, name, output)
        product = self._product(hidden, name, f"{output}/product")
        bias = builder.constant(self._weights.vector(bias_name(name)), np.float32, bias_name(name))
        return builder.add("Add", [product, bias], output)

    def _product(self, hidden: ir.Value, name: str, output: str) -> ir.Value:
        builder, stored = self._builder, self._weights.stored(name)
        rows, width = stored.shape
        if stored.format == "fp16":
            return self._half_product(hidden, name, output)
        blocks = self._weights.blocks(name)
        inputs = [hidden, builder.initializer(blocks.values), builder.initializer(blocks.scales)]
        if blocks.zero_points is not None:
            inputs.append(builder.initializer(blocks.zero_points))
        attributes = {
            "K": width,
            "N": rows,
            "bits": blocks.bits,
            "block_size": blocks.block_size,
            "accuracy_level": ACCURACY_LEVEL,
        }
        return builder.add("MatMulNBits", inputs, output, attributes, domain=MICROSOFT)

    def _half_product(self, hidden: ir.Value, name: str, output: str) -> ir.Value:
        """Multiply by a float16 matrix in float32; both steps before are done once, at load."""
        builder = self._builder
        half = builder.initializer(self._weights.half(name))
        wide = builder.add("Cast", [half], f"{output}/float32", {"to": ir.DataType.FLOAT.value})
        turned = builder.add("Transpose", [wide], f"{output}/transposed", {"perm": [1, 0]})
        return builder.add("MatMul", [hidden, turned], output)

    def add_and_norm(
        self, hidden: ir.Value, delta: ir.Value, weight_name: str, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Return the sum, and the sum normed, from one operator."""
        weight = self._builder.constant(self._weights.vector(weight_name), np.float32, weight_name)
        normed, _, _, total = self._builder.add_many(
            "SkipSimplifiedLayerNormalization",
            [hidden, delta, weight],
            (name, "", "", f"{name}/sum"),
            {"epsilon": self._spec.rms_norm_eps},
            domain=MICROSOFT,
        )
        return total, normed

    def attention(
        self, heads: Heads, past: tuple[ir.Value, ir.Value], layer_index: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rotate, append to the cache and attend in one operator."""
        assert self._lengths is not None and self._tables is not None, "prepare first"
        spec = self._spec
        present = (f"present.{layer_index}.key", f"present.{layer_index}.value")
        output, new_keys, new_values = self._builder.add_many(
            "GroupQueryAttention",
            [heads.query, heads.key, heads.value, *past, *self._lengths, *self._tables],
            (f"{layer_prefix(layer_index)}.self_attn", *present),
            {
                "num_heads": spec.num_heads,
                "kv_num_heads": spec.num_kv_heads,
                "scale": spec.head_dim**-0.5,
                "do_rotary": 1,
                "rotary_interleaved": 0,
            },
            domain=MICROSOFT,
        )
        return output, new_keys, new_values

    def _rotary_tables(self) -> tuple[ir.Value, ir.Value]:
        """Return cosine and sine, float32 [max_context_tokens, head_dim / 2]."""
        spec, shape = self._spec, (self._max_context_tokens, self._spec.head_dim // 2)
        frequencies = inverse_frequencies(spec.rope, spec.head_dim)

        def rows(function: np.ufunc) -> Rows:
            def block(start: int, stop: int) -> npt.NDArray[np.float32]:
                # Angles in float32, as Transformers and the IR have them.
                angles = np.arange(start, stop, dtype=np.float32)[:, None] * frequencies
                table = function(angles) * np.float32(spec.rope.attention_factor)
                return np.asarray(table, dtype=np.float32)

            return block

        cosine = self._weights.append("rotary.cos", shape, np.float32, rows(np.cos))
        sine = self._weights.append("rotary.sin", shape, np.float32, rows(np.sin))
        return self._builder.initializer(cosine), self._builder.initializer(sine)


def check_head_dim(head_dim: int) -> None:
    """Refuse what would be written, and then fail at the first token.

    Raises:
        UnsupportedArchitectureError: ONNX Runtime has no attention for heads of this size.

    Source:
        GroupQueryAttention on the CPU, ONNX Runtime 1.31: "head_size shall be a multiple of 16"
        with rotary embedding inside. 2 to 1,024 tried.
    """
    if head_dim % _HEAD_DIM_STEP:
        raise UnsupportedArchitectureError(
            f"The attention heads of this model have {head_dim:,} dimensions; ONNX Runtime's own "
            f"attention takes multiples of {_HEAD_DIM_STEP}.",
            "add --portable, which writes attention in standard operators",
            field="head_dim",
            value=head_dim,
        )
