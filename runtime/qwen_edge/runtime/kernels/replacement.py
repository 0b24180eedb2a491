"""Put our kernels into a model in memory, in the place of its products with compressed weights.

The package keeps the model that every other program understands.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels.compressed_weights import CompressedWeights, read_weights
from qwen_edge.runtime.kernels.library import AUTO, KernelLibrary, make_factory

_LOGGER = logging.getLogger(__name__)
_OPERATOR = "CompressedMatMul"


@dataclass(frozen=True)
class Replacement:
    """What was put in.

    Attributes:
        num_products: Products that our kernels compute now.
        num_left: Products with constants that stay with the engine.
        keeps_alive: What the operators read from; keep it as long as the model and what was
            compiled of it.
    """

    num_products: int
    num_left: int
    keeps_alive: list[Any] = field(repr=False)


def use_kernels(model: Any, library: KernelLibrary, *, kernels: str = AUTO) -> Replacement:
    """Replace the products with compressed weights that our kernels can compute.

    Products of one tensor become one operator, so that it is rounded once.

    Args:
        model: An `openvino.Model`, not compiled yet. Changed in place.
        library: What `find_kernels` returned, with a path.
        kernels: "auto" for the best, or one of `library.names`.

    State:
        The operators read the model's own constants; nothing is copied.
    """
    factory = make_factory(library)
    groups: dict[tuple[Any, ...], list[tuple[Any, CompressedWeights]]] = {}
    num_left = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weights = read_weights(node)
        if weights is None:
            num_left += _has_constant_weights(node)
            continue
        source = node.input_value(0)
        place = (source.get_node().get_name(), source.get_index())
        key = (*place, weights.bits, weights.zero_points is None)
        groups.setdefault(key, []).append((node, weights))
    keeps_alive: list[Any] = []
    for members in groups.values():
        _replace(factory, members, kernels, keeps_alive)
    model.validate_nodes_and_infer_types()
    num_products = sum(len(members) for members in groups.values())
    _LOGGER.debug("Our kernels compute %d products, %d are left", num_products, num_left)
    return Replacement(num_products, num_left, keeps_alive)


def _replace(
    factory: Any,
    members: list[tuple[Any, CompressedWeights]],
    kernels: str,
    keeps_alive: list[Any],
) -> None:
    """Put one operator in the place of products of one tensor."""
    inputs = [members[0][0].input_value(0)]
    for _, weights in members:
        inputs += make_inputs(weights, keeps_alive)
    first = members[0][1]
    operator = factory.create(
        _OPERATOR,
        inputs,
        {
            "bits": first.bits,
            "zero_points": first.zero_points is not None,
            "kernels": kernels,
        },
    )
    operator.set_friendly_name("/".join(node.get_friendly_name() for node, _ in members))
    for index, (node, _) in enumerate(members):
        output = node.output(0)
        names = output.get_names()
        replaced = operator.output(index)
        output.replace(replaced)
        replaced.add_names(names)


def make_inputs(weights: CompressedWeights, keeps_alive: list[Any]) -> list[Any]:
    """Return codes, scales and zero points, where there are any, as inputs of an operator.

    Args:
        weights: What they are read from.
        keeps_alive: Gets what must live as long as the operator.
    """
    ov = import_openvino()
    keeps_alive += weights.owners
    inputs = []
    for array in (weights.codes, weights.scales, weights.zero_points):
        if array is None:
            continue
        tensor = ov.Tensor(array, shared_memory=True)
        keeps_alive += [array, tensor]
        inputs.append(ov.op.Constant(tensor, True).output(0))
    return inputs


def _has_constant_weights(node: Any) -> bool:
    node = node.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Reshape", "Multiply", "Subtract"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")
