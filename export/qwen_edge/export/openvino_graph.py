"""Build a decoder as an OpenVINO model, straight from its specification and its weights.

No tracing and no torch. The whole model has the inputs, outputs and cache variables that
optimum-intel gives its exports, so OpenVINO GenAI, the model server and the NPU plugin take it
unchanged; a single layer can be built alone, for compressing layer by layer. Where weights come
from, and whether they are compressed on the way, is the business of a `WeightSource`. Read
`graph_parts.py` for the small subgraphs and why they have exactly their form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from qwen_edge.export.decoder import (
    EMBEDDING_NAME,
    FINAL_NORM_NAME,
    DecoderSpec,
    bias_name,
    layer_prefix,
)
from qwen_edge.export.graph_parts import (
    attention_bias,
    constant,
    dimension,
    named,
    ops,
    parameter,
    result,
    rms_norm,
    rotary_tables,
    rotate,
    silu,
)
from qwen_edge.export.rope import inverse_frequencies
from qwen_edge.runtime.engine import import_openvino

if TYPE_CHECKING:
    import openvino as ov
else:
    ov = import_openvino()


class WeightSource(Protocol):
    """Where the graph gets its weights. Names are the checkpoint's tensor names."""

    def linear(self, name: str) -> Any:
        """Return a projection's weight, float32 [out, in], as the output of a subgraph.

        The subgraph may be a constant, a constant with a `Convert`, or a decompression.
        Its nodes must be named by the source.
        """

    def embedding(self, name: str) -> Any:
        """Return the embedding table, float32 [vocab, hidden]; also a tied model's head."""

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or a bias, float32 [size]."""

    def activation_scale(self, name: str) -> npt.NDArray[np.float32] | None:
        """Return what multiplies the input of projection `name`, float32 [in], or None.

        AWQ scales the columns of a weight and undoes it on the activation.
        """


@dataclass(frozen=True)
class _Context:
    """What every layer of one graph shares.

    Args:
        spec: The architecture.
        weights: The weights.
        tables: Cosine and sine, float32 [batch, 1, length, head_dim].
        bias: Added to the attention scores, float32 [batch, 1, length, past + length].
        batch: int64 [1], for the empty cache; None builds layers without a cache.
        beam_idx: int32 [batch], which sequence of the cache each row goes on from.
    """

    spec: DecoderSpec
    weights: WeightSource
    tables: tuple[Any, Any]
    bias: Any
    batch: Any = None
    beam_idx: Any = None


def build_decoder(spec: DecoderSpec, weights: WeightSource) -> ov.Model:
    """Build the whole stateful model.

    Args:
        spec: The architecture.
        weights: The weights; each is asked for once.

    Returns:
        A model with inputs `input_ids`, `attention_mask`, `position_ids` (int64) and
        `beam_idx` (int32), output `logits` float32 [batch, length, vocab], and two
        variables per layer. It shares the memory of the weights. Save it with
        `compress_to_fp16=False`: rounded to float16, which is what `ov.save_model` does
        unless told otherwise, the rotary frequencies are off by radians in a long text.

    Source:
        Names as in optimum-intel 2.2, exporters/openvino/stateful.py.
    """
    input_ids = parameter([-1, -1], ov.Type.i64, "input_ids")
    attention_mask = parameter([-1, -1], ov.Type.i64, "attention_mask")
    position_ids = parameter([-1, -1], ov.Type.i64, "position_ids")
    beam_idx = parameter([-1], ov.Type.i32, "beam_idx")
    table = weights.embedding(EMBEDDING_NAME)
    hidden = _embed(input_ids, table)
    context = _Context(
        spec=spec,
        weights=weights,
        tables=_tables(spec, position_ids),
        bias=attention_bias(attention_mask, input_ids),
        batch=dimension(input_ids, 0, "model.cache/batch", is_scalar=False),
        beam_idx=beam_idx,
    )
    sinks: list[Any] = []
    for layer_index in range(spec.num_layers):
        hidden, layer_sinks = _layer(context, hidden, layer_index)
        sinks += layer_sinks
    head = table if spec.is_tied else weights.linear(spec.head_weight_name)
    logits = _logits(spec, weights, hidden, head)
    inputs = [input_ids, attention_mask, position_ids, beam_idx]
    return _model([result(logits, "logits")], sinks, inputs, "decoder")


def build_layer_model(spec: DecoderSpec, weights: WeightSource, layer_index: int) -> ov.Model:
    """Build one decoder layer alone, without a cache.

    Args:
        spec: The architecture.
        weights: The weights; only this layer's are asked for.
        layer_index: From 0 to `spec.num_layers` - 1.

    Returns:
        A model with inputs `hidden_states` float32 [batch, length, hidden],
        `attention_mask` and `position_ids` int64 [batch, length], and output
        `hidden_states_out` like the first input. Nodes are named as in `build_decoder`.
    """
    hidden = parameter([-1, -1, spec.hidden_size], ov.Type.f32, "hidden_states")
    attention_mask = parameter([-1, -1], ov.Type.i64, "attention_mask")
    position_ids = parameter([-1, -1], ov.Type.i64, "position_ids")
    context = _Context(
        spec=spec,
        weights=weights,
        tables=_tables(spec, position_ids),
        bias=attention_bias(attention_mask, hidden),
    )
    output, sinks = _layer(context, hidden, layer_index)
    inputs = [hidden, attention_mask, position_ids]
    return _model([result(output, "hidden_states_out")], sinks, inputs, f"layer_{layer_index}")


def build_embedding_model(spec: DecoderSpec, weights: WeightSource) -> ov.Model:
    """Build the embedding alone: `input_ids` int64 [batch, length] -> `hidden_states`."""
    input_ids = parameter([-1, -1], ov.Type.i64, "input_ids")
    hidden = _embed(input_ids, weights.embedding(EMBEDDING_NAME))
    return _model([result(hidden, "hidden_states")], [], [input_ids], "embedding")


def build_head_model(spec: DecoderSpec, weights: WeightSource) -> ov.Model:
    """Build the final norm and head alone: `hidden_states` float32 -> `logits`."""
    hidden = parameter([-1, -1, spec.hidden_size], ov.Type.f32, "hidden_states")
    name = spec.head_weight_name
    head = weights.embedding(name) if spec.is_tied else weights.linear(name)
    logits = _logits(spec, weights, hidden, head)
    return _model([result(logits, "logits")], [], [hidden], "head")


def cache_variable_name(layer_index: int, kind: str) -> str:
    """Return the name of a layer's cache variable; `kind` is "key" or "value"."""
    return f"past_key_values.{layer_index}.{kind}present.{layer_index}.{kind}"


def _model(
    results: Sequence[Any], sinks: Sequence[Any], inputs: Sequence[Any], name: str
) -> ov.Model:
    """Put a model together; checks shapes and types of the whole graph."""
    model = ov.Model(list(results), list(sinks), list(inputs), name)
    model.validate_nodes_and_infer_types()
    return model


def _tables(spec: DecoderSpec, position_ids: Any) -> tuple[Any, Any]:
    """Return cosine and sine, float32 [batch, 1, length, head_dim]."""
    frequencies = inverse_frequencies(spec.rope, spec.head_dim)
    return rotary_tables(position_ids, frequencies, spec.rope.attention_factor)


def _embed(input_ids: Any, table: Any) -> Any:
    """Look up token ids; float32 [batch, length, hidden]."""
    name = "model.embed_tokens"
    ids = named(ops.convert(input_ids, "i32"), f"{name}/ids")
    return named(ops.gather(table, ids, constant(0, np.int32, f"{name}/axis")), name)


def _logits(spec: DecoderSpec, weights: WeightSource, hidden: Any, head: Any) -> Any:
    """Apply the final norm and the head; float32 [batch, length, vocab]."""
    normed = rms_norm(hidden, weights.vector(FINAL_NORM_NAME), spec.rms_norm_eps, "model.norm")
    # Last before the result, so that GenAI finds it and computes one position only.
    return named(ops.matmul(normed, head, False, True), "lm_head")


def _layer(context: _Context, hidden: Any, layer_index: int) -> tuple[Any, list[Any]]:
    """Add one decoder layer; returns float32 [batch, length, hidden] and the cache's sinks."""
    spec, weights, prefix = context.spec, context.weights, layer_prefix(layer_index)
    norm_name = f"{prefix}.input_layernorm"
    normed = rms_norm(hidden, weights.vector(f"{norm_name}.weight"), spec.rms_norm_eps, norm_name)
    attended, sinks = _attention(context, normed, layer_index)
    hidden = named(ops.add(hidden, attended), f"{prefix}/attention_residual")
    norm_name = f"{prefix}.post_attention_layernorm"
    normed = rms_norm(hidden, weights.vector(f"{norm_name}.weight"), spec.rms_norm_eps, norm_name)
    return named(ops.add(hidden, _mlp(context, normed, prefix)), prefix), sinks


def _mlp(context: _Context, hidden: Any, prefix: str) -> Any:
    """Add the gated MLP; float32 [batch, length, hidden]."""
    gate = _linear(context, hidden, f"{prefix}.mlp.gate_proj")
    up = _linear(context, hidden, f"{prefix}.mlp.up_proj")
    gate = silu(gate, f"{prefix}.mlp.act_fn")
    return _linear(
        context, named(ops.multiply(gate, up), f"{prefix}.mlp"), f"{prefix}.mlp.down_proj"
    )


def _linear(context: _Context, hidden: Any, name: str) -> Any:
    """Add a projection [..., in] -> [..., out], with its scale and bias where it has them."""
    weight_name = f"{name}.weight"
    scale = context.weights.activation_scale(weight_name)
    if scale is not None:
        scale_node = constant(scale.reshape(1, 1, -1), np.float32, f"{name}.activation_scale")
        hidden = named(ops.multiply(hidden, scale_node), f"{name}/scaled_input")
    weight = context.weights.linear(weight_name)
    if not context.spec.has_bias(weight_name):
        return named(ops.matmul(hidden, weight, False, True), name)
    product = named(ops.matmul(hidden, weight, False, True), f"{name}/product")
    bias = context.weights.vector(bias_name(weight_name)).reshape(1, 1, -1)
    return named(ops.add(product, constant(bias, np.float32, f"{name}.bias")), name)


def _attention(context: _Context, hidden: Any, layer_index: int) -> tuple[Any, list[Any]]:
    """Add the attention of one layer; returns its output and the cache's sinks."""
    spec = context.spec
    name = f"{layer_prefix(layer_index)}.self_attn"
    query = _heads(context, hidden, f"{name}.q", spec.num_heads)
    key = _heads(context, hidden, f"{name}.k", spec.num_kv_heads)
    value = _heads(context, hidden, f"{name}.v", spec.num_kv_heads)
    query = rotate(query, context.tables, spec.head_dim, f"{name}.q_rotary")
    key = rotate(key, context.tables, spec.head_dim, f"{name}.k_rotary")
    sinks = []
    if context.batch is not None:
        key, key_sink = _cached(context, key, layer_index, "key")
        value, value_sink = _cached(context, value, layer_index, "value")
        sinks = [key_sink, value_sink]
    scale = constant(spec.head_dim**-0.5, np.float32, f"{name}/scale")
    attended = named(
        ops.scaled_dot_product_attention(
            query,
            _repeat_heads(spec, key, f"{name}.k"),
            _repeat_heads(spec, value, f"{name}.v"),
            context.bias,
            scale,
        ),
        f"{name}/attention",
    )  # [batch, heads, length, head_dim]
    order = constant([0, 2, 1, 3], np.int32, f"{name}/output_order")
    attended = named(ops.transpose(attended, order), f"{name}/output_by_position")
    shape = constant([0, 0, spec.num_heads * spec.head_dim], np.int64, f"{name}/output_shape")
    attended = named(ops.reshape(attended, shape, True), f"{name}/output")
    return _linear(context, attended, f"{name}.o_proj"), sinks


def _heads(context: _Context, hidden: Any, name: str, num_heads: int) -> Any:
    """Project and split into heads; float32 [batch, heads, length, head_dim]."""
    spec = context.spec
    projected = _linear(context, hidden, f"{name}_proj")
    shape = constant([0, 0, num_heads, spec.head_dim], np.int64, f"{name}_heads/shape")
    heads = named(ops.reshape(projected, shape, True), f"{name}_heads")
    if spec.has_qk_norm and not name.endswith(".v"):
        weight = context.weights.vector(f"{name}_norm.weight")
        heads = rms_norm(heads, weight, spec.rms_norm_eps, f"{name}_norm")
    order = constant([0, 2, 1, 3], np.int32, f"{name}_by_head/order")
    return named(ops.transpose(heads, order), f"{name}_by_head")


def _cached(context: _Context, new: Any, layer_index: int, kind: str) -> tuple[Any, Any]:
    """Append to the cache; returns [batch, kv_heads, past + length, head_dim] and the sink.

    The CPU plugin keeps cache and attention in one operation only for exactly this chain:
    read, reorder by `beam_idx`, concatenate along the positions, assign. The NPU plugin turns
    the first two into an input, and stores the values transposed where that input and a
    `Transpose` meet in the `Concat`, and unsqueeze, broadcast, reshape follow.

    Source:
        openvino 2026.4, intel_npu/src/plugin/npuw/npuw_transformations/
        optimize_value_tensors.cpp.
    """
    spec = context.spec
    name = f"{layer_prefix(layer_index)}.self_attn.{kind}_cache"
    variable = cache_variable_name(layer_index, kind)
    parts = [
        context.batch,
        constant([spec.num_kv_heads], np.int64, f"{name}/heads"),
        constant([0], np.int64, f"{name}/no_positions"),
        constant([spec.head_dim], np.int64, f"{name}/head_dim"),
    ]
    shape = named(ops.concat(parts, 0), f"{name}/empty_shape")
    empty = ops.broadcast(constant(0.0, np.float32, f"{name}/zero"), shape)
    empty = named(empty, f"{name}/empty")
    variable_shape = ov.PartialShape([-1, spec.num_kv_heads, -1, spec.head_dim])
    past = named(ops.read_value(empty, variable, ov.Type.f32, variable_shape), f"{name}/read")
    axis = constant(0, np.int64, f"{name}/beam_axis")
    past = named(ops.gather(past, context.beam_idx, axis), f"{name}/past")
    joined = named(ops.concat([past, new], -2), name)
    return joined, named(ops.assign(joined, variable), f"{name}/assign")


def _repeat_heads(spec: DecoderSpec, heads: Any, name: str) -> Any:
    """Repeat each key or value head for the query heads that share it.

    Source:
        `bidirectional` broadcast is what the CPU plugin absorbs into the attention; with
        the numpy rule it falls back to plain matrix products without a word (2026.4).
    """
    num_repeats = spec.num_heads // spec.num_kv_heads
    if num_repeats == 1:
        return heads
    axis = constant(2, np.int64, f"{name}_repeat/axis")
    spread = named(ops.unsqueeze(heads, axis), f"{name}_repeat/spread")
    target = constant([1, 1, num_repeats, 1, 1], np.int64, f"{name}_repeat/target")
    spread = ops.broadcast(spread, target, broadcast_spec="BIDIRECTIONAL")
    spread = named(spread, f"{name}_repeat/repeated")
    shape = constant([0, spec.num_heads, -1, spec.head_dim], np.int64, f"{name}_repeat/shape")
    return named(ops.reshape(spread, shape, True), f"{name}_repeat")
