"""Put our attention into a model in memory, in the place of the engine's and of the state it keeps.

The engine computes several tokens after others one by one, each of which reads the whole cache
again, and does not reach the speed of memory with one. The cache of ours lies outside the engine:
forgetting its last tokens is counting fewer.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels.library import AUTO, KernelLibrary, make_factory

_LOGGER = logging.getLogger(__name__)
_OPERATOR = "CachedAttention"
CACHE = "kv_cache"
"""The input that such a model has instead of those that it loses: int32 [2], the number of a
`KvCache`, and how many tokens come before those of the call."""
_LOST_INPUTS = ("attention_mask", "beam_idx")
_GROUP = 32  # as kCacheGroup in native/kernels.hpp
_SWAPPED = [0, 2, 1, 3]


@dataclass(frozen=True)
class CacheShape:
    """What a cache must be like for a model.

    Attributes:
        num_layers: Layers with a cache of their own.
        num_kv_heads: Heads of keys and values in each.
        head_dim: Numbers of a key or a value.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Site:
    """Attention in a layer: what it reads, and what is replaced."""

    query: Any
    key: Any
    value: Any
    values_by_row: bool
    scale: float
    mask: Any
    variables: tuple[str, str]
    shape: tuple[int, int]  # kv heads, head_dim
    output: Any


def use_attention(model: Any, library: KernelLibrary, *, kernels: str = AUTO) -> CacheShape | None:
    """Replace attention with state in all layers, or, where one is of another form, in none.

    Args:
        model: An `openvino.Model` as our export writes it, not compiled yet. Changed in place: it
            loses its state and the inputs `attention_mask` and `beam_idx`, and gets `CACHE`.
        library: What `find_kernels` returned, with a path.
        kernels: "auto" for the best, or one of `library.names`.

    Returns:
        What its cache must be like; None where nothing was changed.
    """
    found = read_sites(model)
    if not found:
        _LOGGER.info("Attention stays with the engine: it is not of the form that is known")
        return None
    factory, cache = make_factory(library), make_input()
    for layer, site in enumerate(found):
        attributes = {
            "layer": layer,
            "scale": site.scale,
            "values_by_row": site.values_by_row,
            "kernels": kernels,
        }
        inputs = [site.query, site.key, site.value, cache.output(0)]
        operator = factory.create(_OPERATOR, inputs, attributes)
        operator.set_friendly_name(f"{site.output.get_node().get_friendly_name()}/{_OPERATOR}")
        site.output.replace(operator.output(0))
    drop_state(model, cache)
    return CacheShape(len(found), *found[0].shape)


def read_sites(model: Any) -> list[Site]:
    """Return attention of all layers, in their order; none where one is of another form."""
    nodes = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "ScaledDotProductAttention"
    ]
    sites = [_read_site(node) for node in nodes]
    found = [site for site in sites if site is not None]
    variables = {name for site in found for name in site.variables}
    is_uniform = len({(site.shape, site.mask.get_name()) for site in found}) == 1
    has_all = len(found) == len(nodes) and variables == _names_of_variables(model)
    return found if is_uniform and has_all else []


def build_attention(
    library: KernelLibrary,
    *,
    num_heads: int,
    shape: CacheShape,
    scale: float,
    kernels: str = AUTO,
    values_by_row: bool = False,
) -> Any:
    """Return a model of our attention alone, of one layer.

    Args:
        library: What `find_kernels` returned, with a path.
        num_heads: Heads of queries, a multiple of those of keys.
        shape: Of its cache.
        scale: Of the products of queries and keys.
        kernels: "auto" for the best, or one of `library.names`.
        values_by_row: Whether values come as [1, rows, kv_heads, head_dim].

    Returns:
        An `openvino.Model`: queries [1, heads, rows, head_dim], keys and values
        [1, kv_heads, rows, head_dim], float32, and `CACHE`, to [1, rows, heads * head_dim].
    """
    ov = import_openvino()
    kv_heads, head_dim = shape.num_kv_heads, shape.head_dim
    of_keys = [1, kv_heads, -1, head_dim]
    of_values = [1, -1, kv_heads, head_dim] if values_by_row else of_keys
    inputs = [
        ov.op.Parameter(ov.Type.f32, ov.PartialShape(sizes))
        for sizes in ([1, num_heads, -1, head_dim], of_keys, of_values)
    ]
    inputs.append(make_input())
    attributes = {"layer": 0, "scale": scale, "values_by_row": values_by_row, "kernels": kernels}
    operator = make_factory(library).create(
        _OPERATOR, [one.output(0) for one in inputs], attributes
    )
    return ov.Model(operator.outputs(), inputs)


def make_input() -> Any:
    """Return the input `CACHE` of a model."""
    ov = import_openvino()
    cache = ov.op.Parameter(ov.Type.i32, ov.PartialShape([2]))
    cache.set_friendly_name(CACHE)
    cache.output(0).set_names({CACHE})
    return cache


def drop_state(model: Any, cache: Any) -> None:
    """Take away the model's state and the inputs that go with it, and give it `CACHE` instead."""
    for sink in list(model.get_sinks()):
        model.remove_sink(sink)
    for variable in list(model.get_variables()):
        model.remove_variable(variable)
    for parameter in list(model.get_parameters()):
        if parameter.output(0).get_names() & set(_LOST_INPUTS):
            model.remove_parameter(parameter)
    model.add_parameters([cache])
    model.validate_nodes_and_infer_types()


def _names_of_variables(model: Any) -> set[str]:
    return {variable.get_info().variable_id for variable in model.get_variables()}


def _read_site(node: Any) -> Site | None:
    """Return what a node of attention is made of, or None where it is made otherwise."""
    if node.get_attributes()["causal"] or node.get_input_size() not in (4, 5):
        return None
    key, value = (_read_cache(node.input_value(i).get_node()) for i in (1, 2))
    output = _read_output(node)
    query, mask = node.input_value(0), node.input_value(3).get_node()
    if key is None or value is None or output is None or not _is_causal(mask):
        return None
    heads, head_dim = (query.get_partial_shape()[axis] for axis in (1, 3))
    shapes = {
        tuple(str(one[0].get_partial_shape()[axis]) for axis in (1, 3)) for one in (key, value)
    }
    kv_heads = key[0].get_partial_shape()[1]
    if len(shapes) != 1 or not (heads.is_static and kv_heads.is_static and head_dim.is_static):
        return None
    size, count = head_dim.get_length(), kv_heads.get_length()
    scale = _read_scale(node, size)
    is_fitting = size and not size % _GROUP and count and not heads.get_length() % count
    if scale is None or not is_fitting or key[0].get_partial_shape()[3] != head_dim:
        return None
    new_value, by_row = value[0], False
    if is_swapped(new_value.get_node()):
        new_value, by_row = new_value.get_node().input_value(0), True
    variables = (key[1], value[1])
    return Site(query, key[0], new_value, by_row, scale, mask, variables, (count, size), output)


def _read_cache(node: Any) -> tuple[Any, str] | None:
    """Return the new rows that are appended to a state, and its name."""
    while node.get_type_name() in ("Reshape", "Broadcast", "Unsqueeze"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Concat" or node.get_input_size() != 2:
        return None
    past = node.input_value(0).get_node()
    if past.get_type_name() == "Gather":  # by beams
        past = past.input_value(0).get_node()
    if past.get_type_name() != "ReadValue" or node.get_attributes()["axis"] not in (2, -2):
        return None
    return node.input_value(1), str(past.get_attributes()["variable_id"])


def _read_scale(node: Any, head_dim: int) -> float | None:
    if node.get_input_size() == 4:
        return 1 / math.sqrt(head_dim)
    scale = node.input_value(4).get_node()
    if scale.get_type_name() != "Constant":
        return None
    values = np.asarray(scale.get_data()).reshape(-1)
    return float(values[0]) if values.size == 1 else None


def _read_output(node: Any) -> Any:
    """Return the output [batch, rows, heads * head_dim] behind the attention, or None."""
    for kind in ("Transpose", "Reshape"):
        consumers = list(node.output(0).get_target_inputs())
        if len(consumers) != 1:
            return None
        node = consumers[0].get_node()
        if node.get_type_name() != kind or (kind == "Transpose" and not is_swapped(node)):
            return None
    return node.output(0) if node.get_output_partial_shape(0).rank.get_length() == 3 else None


def is_swapped(node: Any) -> bool:
    """Whether a node changes rows and heads."""
    if node.get_type_name() != "Transpose":
        return False
    order = node.input_value(1).get_node()
    if order.get_type_name() != "Constant":
        return False
    return list(np.asarray(order.get_data())) == _SWAPPED


def _is_causal(mask: Any) -> bool:
    """Whether a mask is that of our export: rows that are present, and none after a token's own."""
    if mask.get_type_name() != "Select":
        return False
    both = mask.input_value(0).get_node()
    if both.get_type_name() != "LogicalAnd":
        return False
    kinds = [both.input_value(i).get_node().get_type_name() for i in (0, 1)]
    return kinds == ["LessEqual", "Unsqueeze"]
