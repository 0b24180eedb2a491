"""Whether the shapes in an ONNX model fit together, where an engine's kernels take it on trust.

ONNX Runtime checks standard operators itself. Its own ones read packed weights and write into
the cache by numbers that the file gives; those are held here against the tensors, the cache and
each other. This module opens no file; read `onnx_file.py` for the whole check.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qwen_edge.runtime.backends.onnx_nodes import MICROSOFT, Node
from qwen_edge.runtime.backends.onnx_proto import refusal, short
from qwen_edge.runtime.backends.onnx_tensors import (
    FLOAT,
    FLOAT16,
    INT4,
    INT8,
    UINT4,
    UINT8,
    Tensor,
    describe,
)

_Expected = tuple[int, tuple[int, ...]]  # type and shape
_MAX_HEADS = 1 << 12
_BLOCK_SIZES = tuple(1 << n for n in range(4, 9))
_ACCURACY_LEVELS = range(5)
_ELEMENTWISE = frozenset(["Add", "Div", "Mul", "Pow", "Sub"])
_KEEPS_WIDTH = frozenset(["Cast", "Cos", "Neg", "Sigmoid", "Sin", "Softmax", "Sqrt"])


@dataclass(frozen=True)
class DecoderShape:
    """Sizes that the inputs and outputs of a decoder give."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


def check_geometry(
    nodes: Sequence[Node], tensors: Mapping[str, Tensor], shape: DecoderShape
) -> int | None:
    """Check the shapes that kernels trust.

    Args:
        nodes: In the order they run.
        tensors: All initializers by name.
        shape: What inputs and outputs say.

    Returns:
        Positions that the shortest rotary table holds, or None where attention needs none.

    Raises:
        PackageError: Naming the node, what was found and what was expected.
    """
    geometry = _Geometry(nodes, tensors, shape)
    for node in nodes:
        check = geometry.checks.get((node.domain, node.op_type))
        if check is not None:
            check(node)
        elif node.domain == "":
            geometry.follow_width(node)
    geometry.check_all_layers_attend()
    return min(geometry.num_positions, default=None)


class _Geometry:
    """One walk over the graph.

    State:
        `_widths` is the last dimension of values, as far as it is known; `num_positions` grows
        with every rotary table.
    """

    def __init__(
        self, nodes: Sequence[Node], tensors: Mapping[str, Tensor], shape: DecoderShape
    ) -> None:
        self._tensors = tensors
        self._shape = shape
        self._producers = {name: node for node in nodes for name in node.outputs if name}
        self._widths = {
            name: tensor.dims[-1] if tensor.dims else 1 for name, tensor in tensors.items()
        }
        self._attending: set[int] = set()
        self.num_positions: list[int] = []
        self.checks: Mapping[tuple[str, str], Callable[[Node], None]] = {
            ("", "DequantizeLinear"): self._check_dequantize,
            (MICROSOFT, "GatherBlockQuantized"): self._check_lookup,
            (MICROSOFT, "GroupQueryAttention"): self._check_attention,
            (MICROSOFT, "MatMulNBits"): self._check_product,
            (MICROSOFT, "SkipSimplifiedLayerNormalization"): self._check_norm,
        }

    def follow_width(self, node: Node) -> None:
        """Keep account of the last dimension through operators that the engine checks itself."""
        name, widths = node.outputs[0], self._widths
        width: int | None = None
        if node.op_type in _ELEMENTWISE:
            first, second = (widths.get(value) for value in node.inputs)
            if first and second and first != second and 1 not in (first, second):
                raise node.wrong(f"joins rows of {first:,} and {second:,} numbers")
            # A row of one number is repeated; an unknown one is that, or as long as the other.
            width = max(first or 0, second or 0)
            width = None if width <= 1 and None in (first, second) else width
        elif node.op_type in _KEEPS_WIDTH:
            width = widths.get(node.inputs[0])
        elif node.op_type == "Gather":
            tensor = self._tensors.get(node.inputs[0])
            is_table = tensor is not None and len(tensor.dims) == 2
            is_rows = is_table and node.int_attribute("axis") == 0
            width = tensor.dims[1] if tensor is not None and is_rows else None
        elif node.op_type == "Reshape":
            values = self._values(node.inputs[1])
            width = values[-1] if values and values[-1] > 0 else None
        if width is not None:
            widths[name] = width

    def check_all_layers_attend(self) -> None:
        """Refuse a graph of which some layers have the fused attention and some have not."""
        missing = set(range(self._shape.num_layers)) - self._attending
        if self._attending and missing:
            raise refusal(f"has no GroupQueryAttention for layer {min(missing)}, but for others")

    def _values(self, name: str) -> tuple[int, ...] | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else tensor.values

    def _expect(self, node: Node, index: int, what: str, *allowed: _Expected) -> Tensor:
        """Return the tensor at an input, which must be one of the allowed types and shapes."""
        tensor = self._tensors.get(node.inputs[index])
        if tensor is None:
            raise node.wrong(
                f"computes its {what} {short(node.inputs[index])}, expected a tensor of the file"
            )
        if (tensor.dtype, tensor.dims) not in allowed:
            expected = " or ".join(describe(dtype, dims) for dtype, dims in allowed)
            raise node.wrong(f"has as {what} the tensor {tensor}, expected {expected}")
        return tensor

    def _expect_width(self, node: Node, index: int, expected: int) -> None:
        width = self._widths.get(node.inputs[index])
        if width is not None and width != expected:
            raise node.wrong(
                f"reads rows of {width:,} numbers from {short(node.inputs[index])}, expected "
                f"{expected:,}"
            )

    def _expect_int(self, node: Node, name: str, allowed: Sequence[int]) -> int:
        value = node.int_attribute(name, -1)
        if value not in allowed:
            expected = " or ".join(map(str, allowed[:5]))
            if isinstance(allowed, range):
                expected = f"{allowed[0]:,} to {allowed[-1]:,} in steps of {allowed.step}"
            raise node.wrong(f"has {name} {value:,}, expected {expected}")
        return value

    def _check_product(self, node: Node) -> None:
        sizes = range(1, 1 << 31)
        rows, width = (self._expect_int(node, name, sizes) for name in ("N", "K"))
        bits = self._expect_int(node, "bits", (4, 8))
        block = self._expect_int(node, "block_size", _BLOCK_SIZES)
        if "accuracy_level" in node.attributes:
            self._expect_int(node, "accuracy_level", _ACCURACY_LEVELS)
        blocks = -(-width // block)
        self._expect(node, 1, "weights", (UINT8, (rows, blocks, block * bits // 8)))
        self._expect(node, 2, "scales", (FLOAT, (rows, blocks)), (FLOAT, (rows * blocks,)))
        if len(node.inputs) > 3:
            packed = -(-blocks * bits // 8)
            self._expect(node, 3, "zero points", (UINT8, (rows, packed)), (UINT8, (rows * packed,)))
        self._expect_width(node, 0, width)
        self._widths[node.outputs[0]] = rows
        if node.outputs[0] == "logits" and rows != self._shape.vocab_size:
            raise node.wrong(f"gives {rows:,} logits, expected {self._shape.vocab_size:,}")

    def _check_lookup(self, node: Node) -> None:
        self._expect_int(node, "bits", (8,))
        self._expect_int(node, "gather_axis", (0,))
        self._expect_int(node, "quantize_axis", (1,))
        block = self._expect_int(node, "block_size", _BLOCK_SIZES)
        if node.inputs[1] != "input_ids":
            raise node.wrong(f"looks up {short(node.inputs[1])}, expected 'input_ids'")
        table = self._tensors.get(node.inputs[0])
        width = table.dims[-1] if table is not None and table.dims else 0
        rows = self._shape.vocab_size
        self._expect(node, 0, "table", (UINT8, (rows, width)))
        parts = (rows, -(-width // block))
        self._expect(node, 2, "scales", (FLOAT, parts))
        if len(node.inputs) > 3:
            self._expect(node, 3, "zero points", (UINT8, parts))
        self._widths[node.outputs[0]] = width

    def _check_norm(self, node: Node) -> None:
        weight = self._tensors.get(node.inputs[2])
        width = weight.dims[-1] if weight is not None and weight.dims else 0
        self._expect(node, 2, "weight", (FLOAT, (width,)))
        self._expect_width(node, 0, width)
        self._expect_width(node, 1, width)
        for name in filter(None, node.outputs):
            self._widths[name] = width

    def _check_attention(self, node: Node) -> None:
        shape = self._shape
        kv_heads = self._expect_int(node, "kv_num_heads", (shape.num_kv_heads,))
        heads = self._expect_int(node, "num_heads", range(kv_heads, _MAX_HEADS, kv_heads))
        self._expect_int(node, "do_rotary", (1,))
        self._expect_int(node, "rotary_interleaved", (0,))
        for index, width in enumerate((heads, kv_heads, kv_heads)):
            self._expect_width(node, index, width * shape.head_dim)
        self._check_cache(node)
        self._check_lengths(node)
        cosine = self._tensors.get(node.inputs[7])
        positions = cosine.dims[0] if cosine is not None and cosine.dims else 0
        table = (FLOAT, (positions, shape.head_dim // 2))
        self._expect(node, 7, "cosines", table)
        self._expect(node, 8, "sines", table)
        self.num_positions.append(positions)
        self._widths[node.outputs[0]] = heads * shape.head_dim

    def _check_cache(self, node: Node) -> None:
        """Check that a layer reads and writes its own cache: the two are one buffer."""
        for layer_index in range(self._shape.num_layers):
            past = tuple(f"past_key_values.{layer_index}.{what}" for what in ("key", "value"))
            if node.inputs[3:5] != past:
                continue
            present = tuple(f"present.{layer_index}.{what}" for what in ("key", "value"))
            if node.outputs[1:] != present or layer_index in self._attending:
                raise node.wrong(f"does not write 'present.{layer_index}.key' and '.value' alone")
            self._attending.add(layer_index)
            return
        raise node.wrong(
            f"reads its cache from {short(node.inputs[3])} and {short(node.inputs[4])}, expected "
            "keys and values of one layer"
        )

    def _check_lengths(self, node: Node) -> None:
        """Check that the kernel, which writes where it is told to, is told the mask's length."""
        last = self._input_of(self._producer(node.inputs[5], "Cast"), "Sub")
        count = self._input_of(last, "ReduceSum")
        is_last = (
            self._is_constant(last, 1, 1)
            and count is not None
            and count.inputs[0] == "attention_mask"
            and self._is_constant(count, 1, 1)
            and count.attributes == {"keepdims": 0}
        )
        total = self._input_of(self._producer(node.inputs[6], "Cast"), "Gather")
        mask_shape = self._input_of(total, "Shape")
        is_total = (
            self._is_constant(total, 1, 1)
            and mask_shape is not None
            and mask_shape.inputs[0] == "attention_mask"
            and mask_shape.attributes == {}
        )
        if not (is_last and is_total):
            raise node.wrong(
                f"takes lengths from {short(node.inputs[5])} and {short(node.inputs[6])}, "
                "expected the count of the attention mask less one, and its size"
            )

    def _producer(self, name: str, op_type: str) -> Node | None:
        node = self._producers.get(name)
        return node if node is not None and node.op_type == op_type else None

    def _input_of(self, node: Node | None, op_type: str) -> Node | None:
        """Return what computes a node's first input, if it is this operator."""
        return None if node is None else self._producer(node.inputs[0], op_type)

    def _is_constant(self, node: Node | None, index: int, value: int) -> bool:
        return (
            node is not None
            and index < len(node.inputs)
            and self._values(node.inputs[index]) == (value,)
        )

    def _check_dequantize(self, node: Node) -> None:
        tensor = self._tensors.get(node.inputs[0])
        if tensor is None or tensor.dtype not in (INT4, UINT4, INT8, UINT8):
            raise node.wrong("unpacks no packed tensor of the file")
        block, axis = node.int_attribute("block_size"), node.int_attribute("axis", 1)
        dims = tensor.dims
        axis += len(dims) if axis < 0 else 0
        if not 0 <= axis < max(len(dims), 1) or block < 0:
            raise node.wrong(f"has axis {axis} and block_size {block} for the tensor {tensor}")
        shapes: list[tuple[int, ...]] = [()]
        if block:
            shapes = [(*dims[:axis], -(-dims[axis] // block), *dims[axis + 1 :])]
        elif dims:
            shapes += [(dims[axis],)]
        scales = [(dtype, dims) for dtype in (FLOAT, FLOAT16) for dims in shapes]
        scale = self._expect(node, 1, "scales", *scales)
        if len(node.inputs) > 2:
            self._expect(node, 2, "zero points", (tensor.dtype, scale.dims))
        if dims:
            self._widths[node.outputs[0]] = dims[-1]
