"""Build a decoder as an ONNX model from the same specification and weights as the IR.

Inputs and outputs are those that onnxruntime-genai's own builder gives its models, so that it
runs ours unchanged: ids and a mask in, logits of the last position out, and a cache that the
caller keeps. Which operators do the work is the business of `onnx_operators.py` (ONNX Runtime's
own, fast) or `portable_operators.py` (standard ones).
"""

import importlib.metadata

import numpy as np
import onnx_ir as ir

from qwen_edge.export.decoder import EMBEDDING_NAME, FINAL_NORM_NAME, DecoderSpec, layer_prefix
from qwen_edge.export.onnx_operators import Heads, Operators
from qwen_edge.export.onnx_parts import GraphBuilder, rms_norm
from qwen_edge.runtime.manifest import ONNX_OPSET

_IR_VERSION = 10  # the one of opset 21
_BATCH, _LENGTH, _TOTAL = "batch_size", "sequence_length", "total_sequence_length"
_PAST = "past_sequence_length"

Cache = tuple[ir.Value, ir.Value]


class _Graph:
    """One graph in the making."""

    def __init__(self, spec: DecoderSpec, operators: Operators, builder: GraphBuilder) -> None:
        self.spec = spec
        self.operators = operators
        self.builder = builder

    def layer(
        self, hidden: ir.Value, normed: ir.Value, past: Cache, layer_index: int
    ) -> tuple[ir.Value, ir.Value, Cache]:
        """Add one layer; returns the residual stream, the MLP's output to add, and the cache."""
        prefix = layer_prefix(layer_index)
        name = f"{prefix}.self_attn"
        heads = Heads(
            query=self._heads(normed, f"{name}.q"),
            key=self._heads(normed, f"{name}.k"),
            value=self.operators.linear(normed, f"{name}.v_proj.weight", f"{name}.v_proj"),
        )
        attended, *present = self.operators.attention(heads, past, layer_index)
        delta = self.operators.linear(attended, f"{name}.o_proj.weight", f"{name}.o_proj")
        norm = f"{prefix}.post_attention_layernorm"
        hidden, normed = self.operators.add_and_norm(hidden, delta, f"{norm}.weight", norm)
        return hidden, self._mlp(normed, prefix), (present[0], present[1])

    def _heads(self, normed: ir.Value, name: str) -> ir.Value:
        """Project queries or keys, and norm each head where the architecture does."""
        spec, builder = self.spec, self.builder
        projected = self.operators.linear(normed, f"{name}_proj.weight", f"{name}_proj")
        if not spec.has_qk_norm:
            return projected
        by_head = builder.ints(0, 0, -1, spec.head_dim)
        heads = builder.add("Reshape", [projected, by_head], f"{name}_heads")
        normed = self.rms_norm(heads, f"{name}_norm.weight", f"{name}_norm")
        return builder.add("Reshape", [normed, builder.ints(0, 0, -1)], f"{name}_joined")

    def _mlp(self, normed: ir.Value, prefix: str) -> ir.Value:
        builder, operators, name = self.builder, self.operators, f"{prefix}.mlp"
        gate = operators.linear(normed, f"{name}.gate_proj.weight", f"{name}.gate_proj")
        up = operators.linear(normed, f"{name}.up_proj.weight", f"{name}.up_proj")
        sigmoid = builder.add("Sigmoid", [gate], f"{name}.act_fn/sigmoid")
        silu = builder.add("Mul", [gate, sigmoid], f"{name}.act_fn")
        product = builder.add("Mul", [silu, up], name)
        return operators.linear(product, f"{name}.down_proj.weight", f"{name}.down_proj")

    def rms_norm(self, hidden: ir.Value, weight_name: str, name: str) -> ir.Value:
        """Norm the last axis with the weight of this name."""
        weight = self.builder.constant(self.operators.vector(weight_name), np.float32, weight_name)
        return rms_norm(self.builder, hidden, weight, self.spec.rms_norm_eps, name)


def build_onnx_decoder(spec: DecoderSpec, operators: Operators, builder: GraphBuilder) -> ir.Model:
    """Build the whole model.

    Args:
        spec: The architecture.
        operators: Fast or portable; adds to `builder`.
        builder: Empty.

    Returns:
        A model with inputs `input_ids` int64 [batch, length], `attention_mask` int64
        [batch, past + length], and per layer `past_key_values.{i}.key` and `.value` float32
        [batch, kv_heads, past, head_dim]; outputs `logits` float32 [batch, 1, vocab], of the
        last position, and per layer `present.{i}.key` and `.value`. Its weights are in the
        external file of the weights that `operators` was made with.

    Source:
        Names and shapes: onnxruntime-genai 0.18, models/builders/base.py, with
        `prune_lm_head`.
    """
    graph = _Graph(spec, operators, builder)
    input_ids = _value("input_ids", ir.DataType.INT64, [_BATCH, _LENGTH])
    attention_mask = _value("attention_mask", ir.DataType.INT64, [_BATCH, _TOTAL])
    pasts = [_cache(spec, index, "past_key_values", _PAST) for index in range(spec.num_layers)]
    operators.prepare(input_ids, attention_mask, pasts[0][0])
    hidden = operators.embedding(EMBEDDING_NAME, input_ids)
    norm = f"{layer_prefix(0)}.input_layernorm"
    normed = graph.rms_norm(hidden, f"{norm}.weight", norm)
    presents: list[ir.Value] = []
    for index, past in enumerate(pasts):
        hidden, delta, present = graph.layer(hidden, normed, past, index)
        presents += _shaped(present, spec)
        is_last = index + 1 == spec.num_layers
        norm = "model.norm" if is_last else f"{layer_prefix(index + 1)}.input_layernorm"
        weight = FINAL_NORM_NAME if is_last else f"{norm}.weight"
        hidden, normed = operators.add_and_norm(hidden, delta, weight, norm)
    last = _last_position(builder, normed)
    logits = operators.linear(last, spec.head_weight_name, "logits")
    logits.shape, logits.type = ir.Shape([_BATCH, 1, spec.vocab_size]), _FLOAT
    inputs = [input_ids, attention_mask, *(value for past in pasts for value in past)]
    return _model(builder, inputs, [logits, *presents])


_FLOAT = ir.TensorType(ir.DataType.FLOAT)


def _value(name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _cache(spec: DecoderSpec, layer_index: int, name: str, length: str) -> Cache:
    shape: list[str | int] = [_BATCH, spec.num_kv_heads, length, spec.head_dim]
    key = _value(f"{name}.{layer_index}.key", ir.DataType.FLOAT, shape)
    return key, _value(f"{name}.{layer_index}.value", ir.DataType.FLOAT, shape)


def _shaped(present: Cache, spec: DecoderSpec) -> Cache:
    for value in present:
        value.shape = ir.Shape([_BATCH, spec.num_kv_heads, _TOTAL, spec.head_dim])
        value.type = _FLOAT
    return present


def _last_position(builder: GraphBuilder, normed: ir.Value) -> ir.Value:
    """Keep the last position only: the head is the largest matrix, and nobody reads the rest.

    `runtime/backends/onnx_file.py` finds this by its name and widens it where more are wanted.
    """
    bounds = [builder.ints(-1), builder.ints(np.iinfo(np.int64).max), builder.ints(1)]
    return builder.add("Slice", [normed, *bounds], "lm_head/last_positions")


def _model(builder: GraphBuilder, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
    domains = {node.domain for node in builder.nodes} - {""}
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=builder.nodes,
        initializers=list(builder.initializers.values()),
        opset_imports={"": ONNX_OPSET} | dict.fromkeys(sorted(domains), 1),
        name="decoder",
    )
    return ir.Model(
        graph,
        ir_version=_IR_VERSION,
        producer_name="qwen-edge",
        producer_version=importlib.metadata.version("qwen-edge"),
    )
