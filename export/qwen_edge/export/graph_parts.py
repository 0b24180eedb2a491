"""The small subgraphs a decoder is made of: norm, projection, rotary embedding, mask.

Each function adds a few operations and names every one of them, constants included, because
OpenVINO's own names count up within a process and two equal exports would differ. The exact
forms matter: the CPU plugin fuses, and the NPU plugin rewrites, only what it recognises. Knows
nothing of checkpoints and caches. Read `openvino_graph.py` next: it puts the parts together.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime.engine import import_openvino

if TYPE_CHECKING:
    import openvino as ov
else:
    ov = import_openvino()

ops = ov.opset15

# What a masked score becomes. It is finite, so a row with nothing to attend to (left padding)
# stays free of NaN, and it exists in float16, in which NPU and GPU compute.
MASKED_SCORE = -65504.0

# Any position is below this; `Slice` takes it as "to the end".
_END = np.iinfo(np.int64).max


def named(node: Any, name: str) -> Any:
    """Set a node's name and return the node."""
    node.set_friendly_name(name)
    return node


def constant(value: npt.ArrayLike, dtype: type[np.generic], name: str) -> Any:
    """Return a named constant."""
    return named(ops.constant(np.asarray(value, dtype=dtype)), name)


def dimension(source: Any, axis: int, name: str, *, is_scalar: bool) -> Any:
    """Return one dimension of a tensor as int64, [] or [1]."""
    shape = named(ops.shape_of(source, "i64"), f"{name}/shape")
    index = constant(axis if is_scalar else [axis], np.int64, f"{name}/index")
    return named(ops.gather(shape, index, constant(0, np.int64, f"{name}/axis")), name)


def rms_norm(hidden: Any, weight: npt.NDArray[np.float32], eps: float, name: str) -> Any:
    """Divide by the root mean square over the last axis and scale.

    Args:
        hidden: float32 [..., size].
        weight: float32 [size].
        eps: Added to the mean square.
        name: Name of the last operation; the others get it as a prefix.

    Returns:
        float32 [..., size].

    Source:
        The order of operations is the one openvino's RMSFusion recognises, 2026.4.
    """
    square = named(ops.power(hidden, constant(2.0, np.float32, f"{name}/two")), f"{name}/square")
    axis = constant([-1], np.int64, f"{name}/mean_axis")
    mean = named(ops.reduce_mean(square, axis, keep_dims=True), f"{name}/mean")
    shifted = named(ops.add(mean, constant(eps, np.float32, f"{name}/eps")), f"{name}/add_eps")
    root = named(ops.sqrt(shifted), f"{name}/root")
    inverse = named(ops.divide(constant(1.0, np.float32, f"{name}/one"), root), f"{name}/inverse")
    scaled = named(ops.multiply(hidden, inverse), f"{name}/normalized")
    return named(ops.multiply(constant(weight, np.float32, f"{name}.weight"), scaled), name)


def silu(gate: Any, name: str) -> Any:
    """Return gate * sigmoid(gate).

    Source:
        `ops.swish` adds a constant for its second input, and openvino's CPU plugin then misses
        the fused MLP it has for 16-bit weights on AMX (MLPFusionPass, 2026.4).
    """
    return named(
        ov.utils.node_factory.NodeFactory("opset4").create("Swish", [gate.output(0)], {}), name
    )


def rotary_tables(
    position_ids: Any, frequencies: npt.NDArray[np.float32], attention_factor: float
) -> tuple[Any, Any]:
    """Return the cosine and sine of every position.

    Args:
        position_ids: int64 [batch, length].
        frequencies: float32 [head_dim / 2], radians per position.
        attention_factor: Multiplier of both; 1 adds no operation.

    Returns:
        Two float32 [batch, 1, length, head_dim]; the second half repeats the first.
    """
    name = "model.rotary_emb"
    one = constant(1, np.int64, f"{name}/unsqueeze_axis")
    row = named(ops.unsqueeze(position_ids, one), f"{name}/positions")
    row = named(ops.convert(row, "f32"), f"{name}/positions_f32")
    column = constant(frequencies.reshape(1, -1, 1), np.float32, f"{name}.inv_freq")
    angles = named(ops.matmul(column, row, False, False), f"{name}/angles")
    order = constant([0, 2, 1], np.int32, f"{name}/angles_order")
    angles = named(ops.transpose(angles, order), f"{name}/angles_by_position")
    doubled = named(ops.concat([angles, angles], -1), f"{name}/angles_doubled")
    cosine, sine = named(ops.cos(doubled), f"{name}/cos"), named(ops.sin(doubled), f"{name}/sin")
    if attention_factor != 1.0:
        factor = constant(attention_factor, np.float32, f"{name}/attention_factor")
        cosine = named(ops.multiply(cosine, factor), f"{name}/cos_scaled")
        sine = named(ops.multiply(sine, factor), f"{name}/sin_scaled")
    axis = constant(1, np.int64, f"{name}/heads_axis")
    return (
        named(ops.unsqueeze(cosine, axis), f"{name}/cos_per_head"),
        named(ops.unsqueeze(sine, axis), f"{name}/sin_per_head"),
    )


def rotate(heads: Any, tables: tuple[Any, Any], head_dim: int, name: str) -> Any:
    """Rotate queries or keys to their positions.

    Args:
        heads: float32 [batch, heads, length, head_dim].
        tables: Cosine and sine from `rotary_tables`.
        head_dim: Dimensions of one head.
        name: Name of the last operation.

    Returns:
        float32 [batch, heads, length, head_dim].

    Source:
        The form openvino's RoPEFusionGPTNEOX recognises, 2026.4.
    """
    half = head_dim // 2

    def part(start: int, stop: int, label: str) -> Any:
        bounds = [
            constant([value], np.int64, f"{name}/{label}_{what}")
            for what, value in (("start", start), ("stop", stop), ("step", 1), ("axis", 3))
        ]
        return named(ops.slice(heads, *bounds), f"{name}/{label}")

    minus_one = constant(-1.0, np.float32, f"{name}/minus_one")
    second = named(ops.multiply(part(half, _END, "second_half"), minus_one), f"{name}/negated")
    turned = named(ops.concat([second, part(0, half, "first_half")], -1), f"{name}/turned")
    cosine, sine = tables
    along = named(ops.multiply(heads, cosine), f"{name}/cos_part")
    across = named(ops.multiply(turned, sine), f"{name}/sin_part")
    return named(ops.add(along, across), name)


def attention_bias(attention_mask: Any, input_ids: Any) -> Any:
    """Return what is added to the attention scores: 0 where allowed, else very negative.

    A key is visible to a query that does not come before it in the cache, unless the mask
    holds 0 for it. Zeros may be anywhere: left padding, or tokens taken back later.

    Args:
        attention_mask: int64 [batch, past + length].
        input_ids: Any tensor [batch, length, ...]; only its shape is used.

    Returns:
        float32 [batch, 1, length, past + length].

    Source:
        Two ranges compared, as the NPU plugin's DetectCausalMask wants it.
    """
    name = "model.attention_mask"
    length = dimension(input_ids, 1, f"{name}/length", is_scalar=True)
    total = dimension(attention_mask, 1, f"{name}/total", is_scalar=True)
    past = named(ops.subtract(total, length), f"{name}/past")
    zero = constant(0, np.int64, f"{name}/zero")
    one = constant(1, np.int64, f"{name}/one")
    keys = named(ops.range(zero, total, one, "i64"), f"{name}/keys")
    queries = named(ops.range(zero, length, one, "i64"), f"{name}/queries")
    queries = named(ops.add(queries, past), f"{name}/queries_in_cache")
    keys = _unsqueeze(keys, (0, 1, 2), f"{name}/keys")  # [1, 1, 1, total]
    queries = _unsqueeze(queries, (0, 1, 3), f"{name}/queries")  # [1, 1, length, 1]
    causal = named(ops.less_equal(keys, queries), f"{name}/causal")
    present = named(ops.convert(attention_mask, "boolean"), f"{name}/present")
    present = _unsqueeze(present, (1, 2), f"{name}/present")  # [batch, 1, 1, total]
    allowed = named(ops.logical_and(causal, present), f"{name}/allowed")
    kept = constant(0.0, np.float32, f"{name}/kept_score")
    masked = constant(MASKED_SCORE, np.float32, f"{name}/masked_score")
    return named(ops.select(allowed, kept, masked), name)


def _unsqueeze(source: Any, axes: tuple[int, ...], name: str) -> Any:
    """Insert dimensions one by one, in the given order."""
    for axis in axes:
        where = constant(axis, np.int64, f"{name}/unsqueeze_{axis}_axis")
        source = named(ops.unsqueeze(source, where), f"{name}/unsqueeze_{axis}")
    return source


def parameter(shape: list[int], dtype: ov.Type, name: str) -> Any:
    """Return a named model input; -1 is a free dimension."""
    node = named(ops.parameter(ov.PartialShape(shape), dtype), name)
    node.get_output_tensor(0).set_names({name})
    return node


def result(source: Any, name: str) -> Any:
    """Return a named model output."""
    node = ops.result(source)
    # The tensor's name is the output's name; the node's own must not collide with an operation.
    node.get_output_tensor(0).set_names({name})
    return named(node, f"{name}/result")
