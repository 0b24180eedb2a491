"""Reading `model.onnx` so that no file can do more than be refused.

The graph is read once, held against what our export writes, changed where the runtime wants it
otherwise, and written to new bytes, which are what an engine gets. Refused are other versions,
other operators, data outside the folder and shapes that do not fit; `onnx_trial.py` answers for
what such a check cannot see. This module imports no engine.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import PackageError, format_bytes
from qwen_edge.runtime.backends.onnx_geometry import DecoderShape, check_geometry
from qwen_edge.runtime.backends.onnx_nodes import MICROSOFT, Node, read_nodes
from qwen_edge.runtime.backends.onnx_proto import (
    MAX_MODEL_BYTES,
    Message,
    check_fields_are_known,
    parse_model,
    refusal,
    short,
)
from qwen_edge.runtime.backends.onnx_tensors import (
    FLOAT,
    INT64,
    Tensor,
    check_only_name,
    data_size,
    describe,
    read_tensors,
    unreadable,
)
from qwen_edge.runtime.files.opening import open_inside
from qwen_edge.runtime.manifest import MODEL_ONNX

_IR_VERSION, _OPSETS = 10, {"": 21, MICROSOFT: 1}
_MAX_LAYERS, _MAX_SIZE = 1 << 10, 1 << 24
_ACCURACY_LEVELS, _BITS = range(5), (4, 8)
_LAST_POSITIONS = "lm_head/last_positions"
_LAST_INT64 = (1 << 63) - 1
_INT_ATTRIBUTE = 2  # AttributeProto.AttributeType.INT
_BATCH, _LENGTH, _TOTAL = "batch_size", "sequence_length", "total_sequence_length"
_PAST = "past_sequence_length"

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxModel:
    """A model that was checked.

    Args:
        text: The graph, for `InferenceSession`; its weights are in `model.onnx.data`.
        folder: Where that is: `session.model_external_initializers_file_folder_path`.
        num_layers: Layers, each with keys and values.
        num_kv_heads: Heads of keys and values.
        head_dim: Numbers in a head.
        vocab_size: Logits of a position.
        is_portable: True when attention is made of standard operators; present keys and values
            are then new arrays, and past and present cannot be one buffer.
        max_context_tokens: Positions that its rotary tables hold; None where it has none.
        num_last_positions: Most positions, the last ones, for which it computes logits.
    """

    text: bytes
    folder: Path
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_portable: bool
    max_context_tokens: int | None = None
    num_last_positions: int = 1


def read_onnx(
    folder: Path | str,
    *,
    accuracy_level: int | Mapping[int, int] | None = None,
    num_last_positions: int = 1,
) -> OnnxModel:
    """Read and check the ONNX model of a package; no engine is started.

    Args:
        folder: The package folder.
        accuracy_level: How MatMulNBits is to compute: 1 in float32, 4 with int8 activations;
            a mapping has a level for each number of bits; None for what the file says. Models
            without that operator are not changed; for them `create_session` takes it.
        num_last_positions: Logits wanted, of the last positions. Of a shorter input all are
            given.

    Returns:
        The model, its logits float32 [batch, up to num_last_positions, vocab].

    Raises:
        PackageError: A file is missing, cut off, linked, or holds what our export does not
            write; the text says which value, and what was expected.
        MissingExtraError: `protobuf` is not installed.
        ValueError: An argument is out of range.
    """
    levels = _levels_by_bits(accuracy_level)
    if not set(_ACCURACY_LEVELS) >= set(levels.values()):
        raise ValueError(f"accuracy_level is {accuracy_level}; expected 0 to 4")
    if not 1 <= num_last_positions <= _MAX_SIZE:
        raise ValueError(f"num_last_positions is {num_last_positions}; expected 1 or more")
    folder = Path(folder)
    text = _read_graph(folder)
    model = parse_model(text)
    _check_versions(model)
    check_fields_are_known(model, text)
    graph = model.graph
    tensors = read_tensors(graph, data_size(folder))
    _check_value_info(graph, tensors)
    shape = _read_shape(graph)
    inputs = [value.name for value in graph.input]
    _check_names_are_free(inputs, tensors)
    nodes = read_nodes(graph, [*inputs, *tensors])
    _check_outputs_are_computed(graph, nodes)
    _check_last_positions(nodes, tensors)
    max_context_tokens = check_geometry(nodes, tensors, shape)
    _set_accuracy_levels(graph, levels)
    if num_last_positions > 1:
        _widen_logits(graph, num_last_positions)
    return OnnxModel(
        text=model.SerializeToString(deterministic=True),
        folder=folder,
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        is_portable=not any(node.op_type == "GroupQueryAttention" for node in nodes),
        max_context_tokens=max_context_tokens,
        num_last_positions=num_last_positions,
    )


def _read_graph(folder: Path) -> bytes:
    """Return the bytes of `model.onnx`: what is checked is what is loaded."""
    path = open_inside(folder, MODEL_ONNX)
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            check_only_name(path, facts.st_nlink)
            if facts.st_size > MAX_MODEL_BYTES:
                raise refusal(
                    f"has {format_bytes(facts.st_size)}, expected a graph without its weights, "
                    f"of up to {format_bytes(MAX_MODEL_BYTES)}",
                    size_bytes=facts.st_size,
                )
            text = file.read(MAX_MODEL_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    if not text:
        raise refusal("is empty")
    return text


def _check_versions(model: Message) -> None:
    """Refuse models of other versions of ONNX, or of our export, than this one reads."""
    found = {entry.domain: entry.version for entry in model.opset_import[:8]}
    standard = {"": _OPSETS[""]}
    if len(model.opset_import) != len(found) or found not in (standard, _OPSETS):
        raise _other_version("operator sets", _join_opsets(found), _join_opsets(_OPSETS))
    if model.ir_version != _IR_VERSION:
        raise _other_version("IR version", str(model.ir_version), str(_IR_VERSION))


def _other_version(what: str, found: str, expected: str) -> PackageError:
    return refusal(
        f"was written by another version or program: it has {what} {found}, expected {expected}",
        "export the package again with this version of qwen-edge.",
        found=found,
        expected=expected,
    )


def _join_opsets(opsets: dict[str, int]) -> str:
    names = [f"{domain[:40] or 'ai.onnx'} {version}" for domain, version in opsets.items()]
    return ", ".join(names) or "none"


def _dims(value: Message) -> tuple[int, Dims]:
    """Return element type and shape of an input or output; a dimension without a name is ''."""
    tensor = value.type.tensor_type
    dims = (
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param
        for dim in tensor.shape.dim[:8]
    )
    return tensor.elem_type, tuple(dims)


def _read_shape(graph: Message) -> DecoderShape:
    """Return the sizes that inputs and outputs give, if these are a decoder's."""
    inputs, outputs = (
        list(values[: 2 * _MAX_LAYERS + 3]) for values in (graph.input, graph.output)
    )
    num_layers = (len(inputs) - 2) // 2
    if not 1 <= num_layers <= _MAX_LAYERS:
        raise refusal(
            f"has {len(inputs):,} inputs, expected ids, a mask, and keys and values of each layer"
        )
    cache, logits = _dims(inputs[2])[1], _dims(outputs[0])[1] if outputs else ()
    sizes = {
        "heads of keys": cache[1] if len(cache) == 4 else 0,
        "numbers in a head": cache[3] if len(cache) == 4 else 0,
        "logits of a position": logits[2] if len(logits) == 3 else 0,
    }
    counts = []
    for what, size in sizes.items():
        if not isinstance(size, int) or not 1 <= size <= _MAX_SIZE:
            raise refusal(f"gives {short(str(size))} as the number of {what}, expected 1 or more")
        counts.append(size)
    shape = DecoderShape(num_layers, *counts)
    _check_values(inputs, _expected_inputs(shape), "input")
    _check_values(outputs, _expected_outputs(shape), "output")
    return shape


def _cache_values(shape: DecoderShape, name: str, length: str) -> dict[str, tuple[int, Dims]]:
    dims: Dims = (_BATCH, shape.num_kv_heads, length, shape.head_dim)
    return {
        f"{name}.{layer_index}.{what}": (FLOAT, dims)
        for layer_index in range(shape.num_layers)
        for what in ("key", "value")
    }


def _expected_inputs(shape: DecoderShape) -> dict[str, tuple[int, Dims]]:
    ids = {"input_ids": (INT64, (_BATCH, _LENGTH)), "attention_mask": (INT64, (_BATCH, _TOTAL))}
    return ids | _cache_values(shape, "past_key_values", _PAST)


def _expected_outputs(shape: DecoderShape) -> dict[str, tuple[int, Dims]]:
    logits: dict[str, tuple[int, Dims]] = {"logits": (FLOAT, (_BATCH, 1, shape.vocab_size))}
    return logits | _cache_values(shape, "present", _TOTAL)


def _check_values(values: list[Message], expected: dict[str, tuple[int, Dims]], what: str) -> None:
    if len(values) != len(expected):
        raise refusal(f"has {len(values):,} {what}s, expected {len(expected):,}")
    for value, (name, facts) in zip(values, expected.items(), strict=True):
        found = _dims(value)
        if value.name != name or found != facts:
            raise refusal(
                f"has the {what} {short(value.name)} {describe(*found)[:200]}, expected {name!r} "
                f"{describe(*facts)}"
            )


def _check_names_are_free(inputs: list[str], tensors: Mapping[str, Tensor]) -> None:
    both = next((name for name in inputs if name in tensors), None)
    if both is not None:
        raise refusal(f"has {short(both)} as input and as tensor at once")


def _check_value_info(graph: Message, tensors: Mapping[str, Tensor]) -> None:
    """Refuse said shapes but those of tensors: the engine plans its memory by them."""
    for value in graph.value_info:
        tensor = tensors.get(value.name)
        if tensor is None or (tensor.dtype, tensor.dims) != _dims(value):
            raise refusal(
                f"says of {short(value.name)} that it is {describe(*_dims(value))[:200]}, "
                f"expected {'nothing' if tensor is None else describe(tensor.dtype, tensor.dims)}"
            )


def _check_outputs_are_computed(graph: Message, nodes: tuple[Node, ...]) -> None:
    computed = {name for node in nodes for name in node.outputs}
    missing = next((value.name for value in graph.output if value.name not in computed), None)
    if missing is not None:
        raise refusal(f"has no node that computes the output {short(missing)}")


def _check_last_positions(nodes: tuple[Node, ...], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a model whose head is not cut to the last position in the way we know."""
    cuts = [node for node in nodes if node.name == _LAST_POSITIONS]
    bounds = [
        tensor.values if tensor is not None else None
        for node in cuts
        for tensor in map(tensors.get, node.inputs[1:])
    ]
    if [node.op_type for node in cuts] != ["Slice"] or bounds != [(-1,), (_LAST_INT64,), (1,)]:
        raise refusal(f"has no node {_LAST_POSITIONS!r} that keeps the last position of axis 1")


def _levels_by_bits(level: int | Mapping[int, int] | None) -> Mapping[int, int]:
    """Return bits -> accuracy level; bits that are left out keep what the file says."""
    if isinstance(level, Mapping):
        return level
    return {} if level is None else dict.fromkeys(_BITS, level)


def _set_accuracy_levels(graph: Message, levels: Mapping[int, int]) -> None:
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        parts = {part.name: part for part in node.attribute}
        level = levels.get(parts["bits"].i)
        if level is None:
            continue
        if "accuracy_level" not in parts:
            parts["accuracy_level"] = node.attribute.add(name="accuracy_level", type=_INT_ATTRIBUTE)
        parts["accuracy_level"].i = level


def _widen_logits(graph: Message, num_last_positions: int) -> None:
    """Let the head see more positions; the bound gets a tensor of its own."""
    node = next(node for node in graph.node if node.name == _LAST_POSITIONS)
    taken = {tensor.name for tensor in graph.initializer}
    taken.update(name for other in graph.node for name in other.output)
    name = f"{_LAST_POSITIONS}/start"
    while name in taken:
        name += "_"
    start = -num_last_positions
    graph.initializer.add(
        name=name, data_type=INT64, dims=[1], raw_data=start.to_bytes(8, "little", signed=True)
    )
    node.input[1] = name
    dim = graph.output[0].type.tensor_type.shape.dim[1]
    dim.ClearField("dim_value")
    dim.dim_param = "num_logits"
