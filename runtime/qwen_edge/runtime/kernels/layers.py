"""Put decoder layers of ours into a model in memory, neighbours as a single operator.

The engine starts some seventeen operators a layer and looks at all inputs of each; beside weights
that are read at the speed of memory that is a tenth of a single token's time and more. All layers
are replaced whole, or none.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels.attention import (
    CacheShape,
    Site,
    drop_state,
    is_swapped,
    make_input,
    read_sites,
)
from qwen_edge.runtime.kernels.compressed_weights import CompressedWeights, read_weights
from qwen_edge.runtime.kernels.library import AUTO, KernelLibrary, make_factory
from qwen_edge.runtime.kernels.replacement import make_inputs

_LOGGER = logging.getLogger(__name__)
_OPERATOR = "DecoderLayers"
_HEAD_STEP = 64  # halves of heads fill vectors


@dataclass(frozen=True)
class LayersReplacement:
    """What was put in.

    Attributes:
        cache: What the model's cache must be like.
        keeps_alive: What the operators read from; keep it as long as what is compiled.
    """

    cache: CacheShape
    keeps_alive: list[Any]


@dataclass(frozen=True)
class _Norm:
    source: Any
    weights: Any
    epsilon: float


@dataclass(frozen=True)
class _Head:
    """Queries or keys on their way to attention."""

    product: Any
    norm: _Norm | None
    cosines: Any
    sines: Any


@dataclass(frozen=True)
class _Layer:
    site: Site
    hidden: Any
    cosines: Any
    sines: Any
    norms: tuple[_Norm, _Norm]
    head_norms: tuple[_Norm, _Norm] | None
    products: tuple[CompressedWeights, ...]  # queries, keys, values, output, gate, up, down
    output: Any


def use_layers(
    model: Any, library: KernelLibrary, *, kernels: str = AUTO
) -> LayersReplacement | None:
    """Replace all decoder layers, or, where one is of another form, none.

    Args:
        model: An `openvino.Model` as our export writes it, with compressed weights, not compiled
            yet. Changed in place, as by `use_attention`.
        library: What `find_kernels` returned, with a path.
        kernels: "auto" for the best, or one of `library.names`.

    Returns:
        What was put in; None where nothing was changed.
    """
    sites = read_sites(model)
    layers = [_read_layer(site) for site in sites]
    found = [layer for layer in layers if layer is not None]
    follows = all(_same(one.output, next_.hidden) for one, next_ in pairwise(found))
    if not found or len(found) != len(sites) or not follows:
        _LOGGER.info("Layers stay with the engine: they are not of the form that is known")
        return None
    cache = make_input()
    keeps_alive: list[Any] = []
    hidden, first = found[0].hidden, 0
    for _, same in groupby(found, key=_kind):
        group = list(same)
        inputs = [hidden, group[0].cosines, group[0].sines, cache.output(0)]
        for layer in group:
            inputs += _make_constants(layer, keeps_alive)
        attributes = {
            "first_layer": first,
            "layers": len(group),
            "scale": group[0].site.scale,
            "epsilon": group[0].norms[0].epsilon,
            "head_norms": group[0].head_norms is not None,
            "kernels": kernels,
        }
        operator = make_factory(library).create(_OPERATOR, inputs, attributes)
        operator.set_friendly_name(f"layers.{first}-{first + len(group) - 1}/{_OPERATOR}")
        hidden = operator.output(0)
        group[-1].output.replace(hidden)
        first += len(group)
    drop_state(model, cache)
    return LayersReplacement(CacheShape(len(found), *found[0].site.shape), keeps_alive)


def _kind(layer: _Layer) -> tuple[Any, ...]:
    """What neighbouring layers must share to be one operator."""
    sizes = tuple(len(weights.codes) for weights in layer.products)
    angles = tuple(
        (one.get_node().get_name(), one.get_index()) for one in (layer.cosines, layer.sines)
    )
    return (layer.site.scale, layer.norms[0].epsilon, layer.head_norms is not None, sizes, angles)


def _make_constants(layer: _Layer, keeps_alive: list[Any]) -> list[Any]:
    """Return norms and weights of a layer in the order in which the operator reads them."""
    constants = [norm.weights.output(0) for norm in (*layer.norms, *(layer.head_norms or ()))]
    for weights in layer.products:
        constants += make_inputs(weights, keeps_alive)
        if weights.zero_points is None:
            ov = import_openvino()
            constants.append(ov.op.Constant(ov.Type.u8, ov.Shape([0]), []).output(0))
    return constants


def _read_layer(site: Site) -> _Layer | None:
    """Return the layer around attention, or None where it is made otherwise."""
    query, key = _read_head(site.query), _read_head(site.key)
    value = _read_product(site.value, "Reshape") if site.values_by_row else None
    if query is None or key is None or value is None or site.shape[1] % _HEAD_STEP:
        return None
    before = _read_norm(query.product.input_value(0))
    has_one_source = _same(*(one.input_value(0) for one in (query.product, key.product, value)))
    if before is None or not has_one_source or not _same(query.cosines, key.cosines):
        return None
    output = _only_consumer(site.output, "MatMul")
    middle = None if output is None else _read_sum(output.output(0), before.source)
    if middle is None or not _same(query.sines, key.sines):
        return None
    rest = _read_mlp(middle)
    if rest is None:
        return None
    after, products, end = rest
    norms = [before, after, *(one.norm for one in (query, key) if one.norm is not None)]
    epsilons = {norm.epsilon for norm in norms}
    if len(epsilons) != 1 or (query.norm is None) != (key.norm is None):
        return None
    nodes = (query.product, key.product, value, output, *products)
    weights = [read_weights(node) for node in nodes]
    known = tuple(one for one in weights if one is not None)
    if len(known) != len(nodes):
        return None
    heads = (query.norm, key.norm) if query.norm is not None and key.norm is not None else None
    return _Layer(
        site, before.source, query.cosines, query.sines, (before, after), heads, known, end
    )


def _read_mlp(middle: Any) -> tuple[_Norm, Sequence[Any], Any] | None:
    """Return the norm before the gate, products with gate, up and down, and the layer's output."""
    for port in middle.get_target_inputs():
        end = port.get_node()
        if end.get_type_name() != "Add":
            continue
        down = end.input_value(1 - port.get_index()).get_node()
        if down.get_type_name() != "MatMul" or not _is_alone(down.output(0)):
            return None
        gated = down.input_value(0).get_node()
        if gated.get_type_name() != "Multiply" or not _is_alone(gated.output(0)):
            return None
        swish, up = (gated.input_value(i).get_node() for i in (0, 1))
        if swish.get_type_name() != "Swish" or swish.get_input_size() != 1:
            return None
        gate = swish.input_value(0).get_node()
        if gate.get_type_name() != "MatMul" or up.get_type_name() != "MatMul":
            return None
        norm = _read_norm(gate.input_value(0))
        if norm is None or not _same(norm.source, middle):
            return None
        if not _same(gate.input_value(0), up.input_value(0)):
            return None
        return norm, (gate, up, down), end.output(0)
    return None


def _read_sum(added: Any, hidden: Any) -> Any:
    """Return the sum of an output and the hidden state, or None."""
    node = _only_consumer(added, "Add")
    if node is None:
        return None
    others = [node.input_value(i) for i in (0, 1) if not _same(node.input_value(i), added)]
    return node.output(0) if len(others) == 1 and _same(others[0], hidden) else None


def _read_head(turned: Any) -> _Head | None:
    """Return what is behind queries or keys that were rotated, or None."""
    node = turned.get_node()
    if node.get_type_name() != "Add":
        return None
    straight, crossed = (node.input_value(i).get_node() for i in (0, 1))
    if {straight.get_type_name(), crossed.get_type_name()} != {"Multiply"}:
        return None
    by_head, halves = straight.input_value(0), crossed.input_value(0).get_node()
    if not is_swapped(by_head.get_node()) or not _are_turned_halves(halves, by_head):
        return None
    by_row = by_head.get_node().input_value(0)
    norm = None
    if by_row.get_node().get_type_name() == "Multiply":
        norm = _read_norm(by_row)
        if norm is None:
            return None
        by_row = norm.source
    product = _read_product(by_row, "Reshape")
    if product is None:
        return None
    return _Head(product, norm, straight.input_value(1), crossed.input_value(1))


def _are_turned_halves(node: Any, source: Any) -> bool:
    """Whether a node is the second half of heads, negated, before the first."""
    if node.get_type_name() != "Concat" or node.get_input_size() != 2:
        return False
    if node.get_attributes()["axis"] not in (3, -1):
        return False
    negated, first = (node.input_value(i).get_node() for i in (0, 1))
    if negated.get_type_name() != "Multiply" or _read_number(negated.input_value(1)) != -1:
        return False
    second = negated.input_value(0).get_node()
    size = source.get_partial_shape()[3].get_length()
    bounds = ((second, size // 2, size), (first, 0, size // 2))
    return all(_is_slice(part, source, begin, end) for part, begin, end in bounds)


def _is_slice(node: Any, source: Any, begin: int, end: int) -> bool:
    """Whether a node is [begin, end) of the last axis."""
    if node.get_type_name() != "Slice" or node.get_input_size() != 5:
        return False
    start, stop, step, axis = (_read_number(node.input_value(i)) for i in range(1, 5))
    is_end = stop is not None and (stop == end or (end == _size_of(source) and stop > end))
    return (
        start == begin
        and is_end
        and step == 1
        and axis in (3, -1)
        and _same(node.input_value(0), source)
    )


def _size_of(output: Any) -> int:
    return int(output.get_partial_shape()[3].get_length())


def _read_product(output: Any, kind: str) -> Any:
    """Return the matrix product behind a node of a kind, or None."""
    node = output.get_node()
    if node.get_type_name() != kind:
        return None
    product = node.input_value(0).get_node()
    return product if product.get_type_name() == "MatMul" else None


def _read_norm(output: Any) -> _Norm | None:
    """Return a root mean square norm, or None where a node is none."""
    node = output.get_node()
    if node.get_type_name() != "Multiply":
        return None
    weights, normalised = (node.input_value(i).get_node() for i in (0, 1))
    is_float = weights.get_type_name() == "Constant" and (
        weights.get_output_element_type(0).get_type_name() == "f32"
    )
    if not is_float or normalised.get_type_name() != "Multiply":
        return None
    source, inverse = normalised.input_value(0), normalised.input_value(1).get_node()
    chain = [inverse]
    for kind, index in (("Divide", 1), ("Sqrt", 0), ("Add", 0), ("ReduceMean", 0)):
        if chain[-1].get_type_name() != kind:
            return None
        chain.append(chain[-1].input_value(index).get_node())
    power = chain[-1]
    epsilon = _read_number(chain[2].input_value(1))
    is_norm = (
        power.get_type_name() == "Power"
        and _same(power.input_value(0), source)
        and _read_number(power.input_value(1)) == 2
        and _read_number(inverse.input_value(0)) == 1
        and _read_number(chain[3].input_value(1)) in (-1, len(source.get_partial_shape()) - 1)
    )
    return _Norm(source, weights, epsilon) if is_norm and epsilon is not None else None


def _read_number(output: Any) -> float | None:
    node = output.get_node()
    if node.get_type_name() != "Constant":
        return None
    values = np.asarray(node.get_data()).reshape(-1)
    return float(values[0]) if values.size == 1 else None


def _only_consumer(output: Any, kind: str) -> Any:
    consumers = list(output.get_target_inputs())
    if len(consumers) != 1 or consumers[0].get_node().get_type_name() != kind:
        return None
    return consumers[0].get_node()


def _is_alone(output: Any) -> bool:
    return len(output.get_target_inputs()) == 1


def _same(*outputs: Any) -> bool:
    """Whether outputs of nodes are one and the same."""
    return len({(one.get_node().get_name(), one.get_index()) for one in outputs}) == 1
