"""The operators of an ONNX decoder in standard ONNX only.

For programs that do not have ONNX Runtime's own operators: the same integers and scales
through `DequantizeLinear`, attention, rotary embedding and cache in primitives. ONNX Runtime
itself makes its int4 and int8 matrix products of `DequantizeLinear` and `MatMul` when it loads
the model. Unlike the fast form this one sees holes in the mask: a masked token is never
attended to, and the positions of later ones do not count it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qwen_edge.export.decoder import DecoderSpec, bias_name, layer_prefix
from qwen_edge.export.onnx_operators import Heads
from qwen_edge.export.onnx_parts import GraphBuilder, rms_norm
from qwen_edge.export.onnx_transposed import TransposedWeights
from qwen_edge.export.onnx_weights import OnnxWeights
from qwen_edge.export.rope import inverse_frequencies

# What is added to a masked score. It is finite, so a row with nothing to attend to (left
# padding) stays free of NaN, and it exists in float16.
_MASKED_SCORE = -65504.0
_FLOAT = {"to": ir.DataType.FLOAT.value}


@dataclass(frozen=True)
class _Shared:
    """What all layers use.

    Args:
        cosine: float32 [batch, length, 1, head_dim]; the second half repeats the first.
        sine: The same.
        bias: float32 [batch, 1, 1, length, total]: 0 where a key is seen.
        by_group: Shape [batch, kv_heads, groups, length, total] of the scores.
        by_kv_head: Shape [batch, kv_heads, groups * length, total] of the scores.
    """

    cosine: ir.Value
    sine: ir.Value
    bias: ir.Value
    by_group: ir.Value
    by_kv_head: ir.Value


class PortableOperators:
    """Standard operators of opset 21.

    Args:
        spec: The architecture.
        weights: The weights.
        builder: Receives nodes and initializers.
    """

    def __init__(self, spec: DecoderSpec, weights: OnnxWeights, builder: GraphBuilder) -> None:
        self._spec = spec
        self._weights = weights
        self._transposed = TransposedWeights(weights)
        self._builder = builder
        self._shared: _Shared | None = None

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or bias, float32 [size]."""
        return self._weights.vector(name)

    def prepare(self, input_ids: ir.Value, attention_mask: ir.Value, past: ir.Value) -> None:
        """Add positions, rotary tables and what is added to the scores.

        Args:
            input_ids: int64 [batch, length].
            attention_mask: int64 [batch, past + length], zeros anywhere.
            past: Not used; the mask's length says what is in the cache.
        """
        del past
        builder, spec = self._builder, self._spec
        axis = {"start": 1, "end": 2}
        length = builder.add("Shape", [input_ids], "model/length", axis)  # [1]
        total = builder.add("Shape", [attention_mask], "model/total", axis)  # [1]
        cosine, sine = self._rotary_tables(attention_mask, length)
        num_groups = spec.num_heads // spec.num_kv_heads
        by_group = [builder.ints(0, spec.num_kv_heads, num_groups), length, total]
        by_kv_head = [builder.ints(0, spec.num_kv_heads, -1), total]
        self._shared = _Shared(
            cosine=cosine,
            sine=sine,
            bias=self._bias(attention_mask, length, total),
            by_group=builder.add("Concat", by_group, "model/scores_by_group", {"axis": 0}),
            by_kv_head=builder.add("Concat", by_kv_head, "model/scores_by_kv_head", {"axis": 0}),
        )

    def embedding(self, name: str, input_ids: ir.Value) -> ir.Value:
        """Look up ids, and dequantise the rows found."""
        builder, output = self._builder, "model.embed_tokens"
        table = self._transposed.table(name, is_head=name == self._spec.head_weight_name)
        values = builder.initializer(table.values)
        axis = 1 if table.is_transposed else 0
        rows = builder.add("Gather", [values, input_ids], f"{output}/rows", {"axis": axis})
        if table.is_transposed:  # [hidden, batch, length]
            rows = builder.add("Transpose", [rows], f"{output}/turned", {"perm": [1, 2, 0]})
        if table.scales is None:
            return builder.add("Cast", [rows], output, _FLOAT)
        rows = builder.add("Cast", [rows], f"{output}/float32", _FLOAT)
        if table.zero_points is not None:
            zero_points = [builder.initializer(table.zero_points), input_ids]
            zero = builder.add("Gather", zero_points, f"{output}/zero_points", {"axis": 0})
            zero = builder.add("Cast", [zero], f"{output}/zero_points_float32", _FLOAT)
            rows = builder.add("Sub", [rows, zero], f"{output}/shifted")
        scales = [builder.initializer(table.scales), input_ids]
        scale = builder.add("Gather", scales, f"{output}/scales", {"axis": 0})
        return builder.add("Mul", [rows, scale], output)

    def linear(self, hidden: ir.Value, name: str, output: str) -> ir.Value:
        """Multiply by a matrix and add its bias."""
        builder = self._builder
        if not self._spec.has_bias(name):
            return builder.add("MatMul", [hidden, self._matrix(name)], output)
        product = builder.add("MatMul", [hidden, self._matrix(name)], f"{output}/product")
        bias = builder.constant(self._weights.vector(bias_name(name)), np.float32, bias_name(name))
        return builder.add("Add", [product, bias], output)

    def _matrix(self, name: str) -> ir.Value:
        """Return a matrix, float32 [in, out], in the form that ONNX Runtime fuses.

        It does so at every load: of Qwen3-4B that takes 0.16 s a layer and 1.4 s for the head,
        and a layer stays 28 MB larger in memory than in the fast form (1.31, 2 cores).

        Source:
            onnxruntime, DQMatMulToMatMulNBits: constants, blocks along axis 0 or a scale per
            column, one reader; from ORT_ENABLE_EXTENDED on.
        """
        builder, matrix = self._builder, self._transposed.matrix(name)
        values = builder.initializer(matrix.values)
        if matrix.scales is None:
            return builder.add("Cast", [values], f"{name}/float32", _FLOAT)
        inputs = [values, builder.initializer(matrix.scales)]
        if matrix.zero_points is not None:
            inputs.append(builder.initializer(matrix.zero_points))
        blocks = {"axis": 0, "block_size": matrix.block_size}
        attributes = {"axis": 1} if matrix.block_size == -1 else blocks
        return builder.add("DequantizeLinear", inputs, f"{name}/float32", attributes)

    def add_and_norm(
        self, hidden: ir.Value, delta: ir.Value, weight_name: str, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Return the sum, and the sum normed."""
        builder = self._builder
        weight = builder.constant(self._weights.vector(weight_name), np.float32, weight_name)
        total = builder.add("Add", [hidden, delta], f"{name}/sum")
        return total, rms_norm(builder, total, weight, self._spec.rms_norm_eps, name)

    def attention(
        self, heads: Heads, past: tuple[ir.Value, ir.Value], layer_index: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rotate, append to the cache and attend.

        The query heads of a key head are taken as further positions of it, [batch, kv_heads,
        groups * length, head_dim]: keys and values are not repeated, and each is read once.
        """
        assert self._shared is not None, "prepare first"
        builder, spec, shared = self._builder, self._spec, self._shared
        name = f"{layer_prefix(layer_index)}.self_attn"
        query = self._rotated(heads.query, spec.num_heads, f"{name}.q")
        scale = builder.constant(spec.head_dim**-0.5, np.float32, "const_attention_scale")
        by_kv_head = builder.ints(0, spec.num_kv_heads, -1, spec.head_dim)
        query = builder.add("Reshape", [query, by_kv_head], f"{name}.q_by_kv_head")
        query = builder.add("Mul", [query, scale], f"{name}.q_scaled")
        new_key = self._rotated(heads.key, spec.num_kv_heads, f"{name}.k")
        new_value = self._by_head(heads.value, spec.num_kv_heads, f"{name}.v")
        present = f"present.{layer_index}"
        keys = builder.add("Concat", [past[0], new_key], f"{present}.key", {"axis": 2})
        values = builder.add("Concat", [past[1], new_value], f"{present}.value", {"axis": 2})
        turned = builder.add("Transpose", [keys], f"{name}.k_turned", {"perm": [0, 1, 3, 2]})
        scores = builder.add("MatMul", [query, turned], f"{name}/scores")
        scores = builder.add("Reshape", [scores, shared.by_group], f"{name}/scores_by_group")
        scores = builder.add("Add", [scores, shared.bias], f"{name}/masked_scores")
        shares = builder.add("Softmax", [scores], f"{name}/shares", {"axis": -1})
        shares = builder.add("Reshape", [shares, shared.by_kv_head], f"{name}/shares_by_kv_head")
        attended = builder.add("MatMul", [shares, values], f"{name}/by_kv_head")
        by_head = builder.ints(0, spec.num_heads, -1, spec.head_dim)
        attended = builder.add("Reshape", [attended, by_head], f"{name}/by_head")
        order = {"perm": [0, 2, 1, 3]}
        attended = builder.add("Transpose", [attended], f"{name}/by_position", order)
        return builder.add("Reshape", [attended, builder.ints(0, 0, -1)], name), keys, values

    def _by_head(self, heads: ir.Value, num_heads: int, name: str) -> ir.Value:
        """Turn [batch, length, heads * head_dim] into [batch, heads, length, head_dim]."""
        builder = self._builder
        shape = builder.ints(0, 0, num_heads, self._spec.head_dim)
        split = builder.add("Reshape", [heads, shape], f"{name}_split")
        return builder.add("Transpose", [split], f"{name}_by_head", {"perm": [0, 2, 1, 3]})

    def _rotated(self, heads: ir.Value, num_heads: int, name: str) -> ir.Value:
        """Rotate to the positions; float32 [batch, heads, length, head_dim]."""
        assert self._shared is not None
        builder = self._builder
        shape = builder.ints(0, 0, num_heads, self._spec.head_dim)
        split = builder.add("Reshape", [heads, shape], f"{name}_split")
        halves = (f"{name}_rotary/first_half", f"{name}_rotary/second_half")
        first, second = builder.add_many("Split", [split], halves, {"axis": -1, "num_outputs": 2})
        negated = builder.add("Neg", [second], f"{name}_rotary/negated")
        turned = builder.add("Concat", [negated, first], f"{name}_rotary/turned", {"axis": -1})
        along = builder.add("Mul", [split, self._shared.cosine], f"{name}_rotary/cos_part")
        across = builder.add("Mul", [turned, self._shared.sine], f"{name}_rotary/sin_part")
        rotated = builder.add("Add", [along, across], f"{name}_rotary")
        return builder.add("Transpose", [rotated], f"{name}_by_head", {"perm": [0, 2, 1, 3]})

    def _rotary_tables(
        self, attention_mask: ir.Value, length: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Return cosine and sine of the positions of this call's tokens.

        A token's position is the number of tokens before it that the mask keeps.
        """
        builder, spec, name = self._builder, self._spec, "model.rotary_emb"
        one = builder.constant(1, np.int64, "const_scalar_1")
        count = builder.add("CumSum", [attention_mask, one], f"{name}/counts")
        last = builder.add("Neg", [length], f"{name}/start")
        bounds = [last, builder.ints(np.iinfo(np.int64).max), builder.ints(1)]
        count = builder.add("Slice", [count, *bounds], f"{name}/counts_of_new")
        positions = builder.add("Sub", [count, one], f"{name}/positions")
        positions = builder.add("Cast", [positions], f"{name}/positions_float32", _FLOAT)
        positions = builder.add(
            "Unsqueeze", [positions, builder.ints(2, 3)], f"{name}/positions_column"
        )
        # Angles in float32, as Transformers and the IR have them.
        frequencies = np.tile(inverse_frequencies(spec.rope, spec.head_dim), 2)
        row = builder.constant(frequencies, np.float32, f"{name}.inv_freq")
        angles = builder.add("Mul", [positions, row], f"{name}/angles")
        tables = []
        for operator in ("Cos", "Sin"):
            table = builder.add(operator, [angles], f"{name}/{operator.lower()}")
            if spec.rope.attention_factor != 1.0:
                factor = builder.constant(
                    spec.rope.attention_factor, np.float32, f"{name}/attention_factor"
                )
                table = builder.add("Mul", [table, factor], f"{name}/{operator.lower()}_scaled")
            tables.append(table)
        return tables[0], tables[1]

    def _bias(self, attention_mask: ir.Value, length: ir.Value, total: ir.Value) -> ir.Value:
        """Return what is added to the scores; float32 [batch, 1, 1, length, total].

        A key is seen by a query that does not come before it in the cache, unless the mask
        holds 0 for it.
        """
        builder, name = self._builder, "model.attention_mask"
        zero = builder.constant(0, np.int64, "const_scalar_0")
        one = builder.constant(1, np.int64, "const_scalar_1")
        end = builder.add("Squeeze", [total], f"{name}/total")
        past = builder.add("Sub", [total, length], f"{name}/past")
        past = builder.add("Squeeze", [past], f"{name}/first_query")
        keys = builder.add("Range", [zero, end, one], f"{name}/keys")  # [total]
        queries = builder.add("Range", [past, end, one], f"{name}/queries")
        queries = builder.add("Unsqueeze", [queries, builder.ints(1)], f"{name}/queries_column")
        causal = builder.add("LessOrEqual", [keys, queries], f"{name}/causal")  # [length, total]
        kept = builder.add("Cast", [attention_mask], f"{name}/kept", {"to": ir.DataType.BOOL.value})
        kept = builder.add("Unsqueeze", [kept, builder.ints(1, 2, 3)], f"{name}/kept_by_key")
        seen = builder.add("And", [causal, kept], f"{name}/seen")
        scores = [
            builder.constant(score, np.float32, f"{name}/{label}_score")
            for score, label in ((0.0, "seen"), (_MASKED_SCORE, "masked"))
        ]
        return builder.add("Where", [seen, *scores], name)
