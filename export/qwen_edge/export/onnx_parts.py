"""Small pieces of an ONNX graph, and a builder that names what it adds.

Standard operators only; what is special to ONNX Runtime is in `onnx_operators.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Attributes = Mapping[str, Any]


class GraphBuilder:
    """Collects nodes and initializers; every value gets the name of the node that makes it.

    State:
        `nodes` and `initializers` grow; equal constants are kept once.
    """

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Attributes | None = None,
        *,
        domain: str = "",
    ) -> ir.Value:
        """Add a node with one output, and return that."""
        return self.add_many(op_type, inputs, (name,), attributes, domain=domain)[0]

    def add_many(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        attributes: Attributes | None = None,
        *,
        domain: str = "",
    ) -> list[ir.Value]:
        """Add a node and return its outputs; an empty name leaves that output out."""
        outputs = [ir.Value(name=name) for name in names]
        node = ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(attributes or {}),
            outputs=outputs,
            name=names[0],
        )
        self.nodes.append(node)
        return outputs

    def initializer(self, tensor: Any) -> ir.Value:
        """Return an initializer for a tensor that has a name."""
        name = tensor.name
        if name not in self.initializers:
            value = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.initializers[name] = value
        return self.initializers[name]

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike, name: str) -> ir.Value:
        """Return a small constant, kept in the graph itself."""
        if name in self.initializers:
            return self.initializers[name]
        return self.initializer(ir.tensor(np.asarray(values, dtype=dtype), name=name))

    def ints(self, *values: int) -> ir.Value:
        """Return an int64 [n] constant; equal ones are one."""
        return self.constant(values, np.int64, "const_" + "_".join(map(str, values)))


def rms_norm(
    builder: GraphBuilder, hidden: ir.Value, weight: ir.Value, eps: float, name: str
) -> ir.Value:
    """Divide by the root mean square over the last axis and scale, in standard operators.

    ONNX Runtime makes one operator of exactly this chain when it loads the model; that
    operator has no place in the standard, and a checker refuses it in a file.

    Args:
        builder: Receives the nodes.
        hidden: float32 [..., size].
        weight: float32 [size].
        eps: Added to the mean square; the same in all norms of a graph.
        name: Of the result.

    Returns:
        float32 [..., size].
    """
    two = builder.constant(2.0, np.float32, "const_two")
    eps_value = builder.constant(eps, np.float32, "const_rms_norm_eps")
    square = builder.add("Pow", [hidden, two], f"{name}/square")
    mean = builder.add("ReduceMean", [square, builder.ints(-1)], f"{name}/mean", {"keepdims": 1})
    shifted = builder.add("Add", [mean, eps_value], f"{name}/shifted")
    root = builder.add("Sqrt", [shifted], f"{name}/root")
    normed = builder.add("Div", [hidden, root], f"{name}/normed")
    return builder.add("Mul", [normed, weight], name)
