"""The operators that our ONNX models are made of, and how a graph may use them.

An engine knows hundreds of operators, and some read files or run other graphs. Allowed are
those that the export writes, with the attributes it gives them; a node reads only what was
computed before it. This module knows no shapes; read `onnx_geometry.py` for those.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwen_edge.errors import PackageError
from qwen_edge.runtime.backends.onnx_proto import Message, refusal, short

MICROSOFT = "com.microsoft"
AttributeValue = int | float | tuple[int, ...]

_MAX_NODES = 1 << 15  # 36 layers have 1,100 nodes, portable 2,200
# Source: onnx.proto, AttributeProto.AttributeType.
_FLOAT, _INT, _INTS = 1, 2, 7
_VALUE_FIELDS = {_FLOAT: "f", _INT: "i", _INTS: "ints"}
_KIND_NAMES = {_FLOAT: "one float", _INT: "one int", _INTS: "ints"}


@dataclass(frozen=True)
class Node:
    """One step of the graph. An empty name among `outputs` is a result that nobody wants."""

    name: str
    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]

    def __str__(self) -> str:
        return f"{self.op_type} {short(self.name)}"

    def int_attribute(self, name: str, default: int = 0) -> int:
        """Return an attribute that `read_nodes` knows to be an int, or the default."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def wrong(self, what: str) -> PackageError:
        """Return the error that says what is wrong with this node."""
        return refusal(f"cannot be used: {self} {what}", node=self.name[:80])


@dataclass(frozen=True)
class _Operator:
    """How many inputs and outputs a node may have, and the kinds of its attributes."""

    inputs: range
    attributes: Mapping[str, int]
    outputs: range = range(1, 2)


def _operator(lowest: int, highest: int, **attributes: int) -> _Operator:
    return _Operator(range(lowest, highest + 1), attributes)


# Source: the operators' versions in opset 21; ContribOperators.md of ONNX Runtime 1.31.
_STANDARD = {
    **dict.fromkeys(
        ["Add", "And", "Div", "LessOrEqual", "MatMul", "Mul", "Pow", "Sub"], _operator(2, 2)
    ),
    **dict.fromkeys(["Cos", "Neg", "Sigmoid", "Sin", "Sqrt"], _operator(1, 1)),
    "Cast": _operator(1, 1, to=_INT),
    "Concat": _operator(2, 16, axis=_INT),
    "CumSum": _operator(2, 2),
    "DequantizeLinear": _operator(2, 3, axis=_INT, block_size=_INT),
    "Gather": _operator(2, 2, axis=_INT),
    "Range": _operator(3, 3),
    "ReduceMean": _operator(2, 2, keepdims=_INT),
    "ReduceSum": _operator(2, 2, keepdims=_INT),
    "Reshape": _operator(2, 2),
    "Shape": _operator(1, 1, start=_INT, end=_INT),
    "Slice": _operator(4, 4),
    "Softmax": _operator(1, 1, axis=_INT),
    "Split": _Operator(range(1, 2), {"axis": _INT, "num_outputs": _INT}, range(2, 17)),
    "Squeeze": _operator(1, 1),
    "Transpose": _operator(1, 1, perm=_INTS),
    "Unsqueeze": _operator(2, 2),
    "Where": _operator(3, 3),
}
_BLOCKS = {"bits": _INT, "block_size": _INT}
_MICROSOFT = {
    "GatherBlockQuantized": _operator(3, 4, gather_axis=_INT, quantize_axis=_INT, **_BLOCKS),
    "GroupQueryAttention": _Operator(
        range(9, 10),
        {
            "num_heads": _INT,
            "kv_num_heads": _INT,
            "scale": _FLOAT,
            "do_rotary": _INT,
            "rotary_interleaved": _INT,
        },
        range(3, 4),
    ),
    "MatMulNBits": _operator(3, 4, K=_INT, N=_INT, accuracy_level=_INT, **_BLOCKS),
    "SkipSimplifiedLayerNormalization": _Operator(range(3, 4), {"epsilon": _FLOAT}, range(1, 5)),
}
_OPERATORS = {"": _STANDARD, MICROSOFT: _MICROSOFT}


def read_nodes(graph: Message, known: Sequence[str]) -> tuple[Node, ...]:
    """Check all nodes of a graph, and return them in the order they run.

    Args:
        graph: GraphProto.
        known: Names of inputs and tensors, each once.

    Raises:
        PackageError: An operator, attribute or count that the export does not write; a name
            that two nodes write; a value read before it is computed.
    """
    if len(graph.node) > _MAX_NODES:
        raise refusal(f"has {len(graph.node):,} nodes, expected up to {_MAX_NODES:,}")
    defined = set(known)
    nodes = []
    for message in graph.node:
        node = _read_node(message)
        for name in node.inputs:
            if name not in defined:
                raise node.wrong(f"reads {short(name)}, which nothing before it computes")
        for name in filter(None, node.outputs):
            if name in defined:
                raise node.wrong(f"writes {short(name)}, which has a value already")
            defined.add(name)
        nodes.append(node)
    return tuple(nodes)


def _read_node(message: Message) -> Node:
    domain = message.domain
    operator = _OPERATORS.get(domain, {}).get(message.op_type)
    if operator is None:
        raise refusal(
            f"has the operator {short(message.op_type)} of {short(domain or 'ai.onnx')} in node "
            f"{short(message.name)}, which our models never have",
            op_type=message.op_type[:80],
            domain=domain[:80],
        )
    node = Node(
        message.name,
        domain,
        message.op_type,
        tuple(message.input),
        tuple(message.output),
        _read_attributes(message, operator),
    )
    for what, names, counts in (
        ("inputs", node.inputs, operator.inputs),
        ("outputs", node.outputs, operator.outputs),
    ):
        if len(names) not in counts:
            raise node.wrong(f"has {len(names)} {what}, expected {counts[0]} to {counts[-1]}")
    if "" in node.inputs or not node.outputs[0]:
        raise node.wrong("leaves out an input, or its first output")
    # ONNX Runtime 1.31 ends the process where these differ.
    if node.op_type == "Split" and node.int_attribute("num_outputs") != len(node.outputs):
        raise node.wrong(
            f"has num_outputs {node.attributes.get('num_outputs')} and {len(node.outputs)} outputs"
        )
    return node


def _read_attributes(message: Message, operator: _Operator) -> Mapping[str, AttributeValue]:
    owner = f"{message.op_type} {short(message.name)}"
    attributes: dict[str, AttributeValue] = {}
    for attribute in message.attribute:
        name, kind = attribute.name, operator.attributes.get(attribute.name)
        if kind is None or name in attributes:
            raise refusal(f"has the attribute {short(name)} in {owner}, unknown there or twice")
        given = {field.name for field, _ in attribute.ListFields()}
        if attribute.type != kind or given != {"name", "type", _VALUE_FIELDS[kind]}:
            raise refusal(
                f"has the attribute {short(name)} in {owner} as type {attribute.type}, expected "
                f"{_KIND_NAMES[kind]}"
            )
        attributes[name] = _value(attribute, kind)
        if kind == _FLOAT and not math.isfinite(attribute.f):
            raise refusal(f"has {attribute.f} as {short(name)} in {owner}, expected a number")
    return attributes


def _value(attribute: Message, kind: int) -> AttributeValue:
    if kind == _FLOAT:
        return float(attribute.f)
    return int(attribute.i) if kind == _INT else tuple(attribute.ints)
