"""Reading ONNX models: ours come out unchanged, and whatever else a file holds is refused.

Most refusals are tested with the demo model, changed by the `onnx` package in one place.
"""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qwen_edge.errors import MissingExtraError, PackageError
from qwen_edge.runtime.backends import onnx_proto, onnx_tensors
from qwen_edge.runtime.backends.onnx_file import OnnxModel, read_onnx
from qwen_edge.runtime.backends.onnx_proto import MAX_MODEL_BYTES

MakeOnnx = Callable[..., Path]
Change = Callable[[Any], object]
Refused = Callable[..., PackageError]
HEAD, CUT = "logits", "lm_head/last_positions"
QUERY = "model.layers.0.self_attn.q_proj"
ATTENTION = "model.layers.1.self_attn"
NORM = "model.layers.0.post_attention_layernorm"
EMBEDDING = "model.embed_tokens"


def read_proto(folder: Path) -> Any:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def node_of(model: Any, name: str) -> Any:
    return next(node for node in model.graph.node if node.name == name)


def tensor_of(model: Any, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def attribute_of(node: Any, name: str) -> Any:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def entry_of(tensor: Any, key: str) -> Any:
    return next(entry for entry in tensor.external_data if entry.key == key)


@pytest.fixture(scope="module")
def demo(onnx_demo: MakeOnnx) -> Path:
    return onnx_demo("int4")


@pytest.fixture
def copied(tmp_path: Path, demo: Path) -> Path:
    """Return a folder with the two files of the demo model, to be changed."""
    folder = tmp_path / "mein päckchen"
    shutil.copytree(demo, folder)
    return folder


@pytest.fixture
def refused(copied: Path) -> Refused:
    """Return a function that changes the model and returns the error it is refused with."""

    def refuse(change: Change, source: Path | None = None) -> PackageError:
        model = read_proto(source or copied)
        change(model)
        if source is not None:
            shutil.copy(source / "model.onnx.data", copied)
        (copied / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(PackageError) as caught:
            read_onnx(copied)
        assert caught.value.fix
        return caught.value

    return refuse


@pytest.mark.parametrize("recipe", ["int4", "int8", "fp16"])
@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
def test_our_models_come_out_unchanged(onnx_demo: MakeOnnx, recipe: str, is_portable: bool) -> None:
    folder = onnx_demo(recipe, is_portable=is_portable)
    model = read_onnx(folder)
    assert onnx.load_model_from_string(model.text) == read_proto(folder)
    positions = None if is_portable else 512
    expected = OnnxModel(model.text, folder, 4, 2, 64, 1024, is_portable, positions)
    assert model == expected


def test_asymmetric_and_tied_weights_are_read_too(onnx_demo: MakeOnnx) -> None:
    """The demo's embedding has zero points and shares its bytes with the head."""
    model = read_proto(onnx_demo("int4"))
    tables = [node_of(model, name).input for name in (EMBEDDING, HEAD)]
    assert [len(names) for names in tables] == [4, 4]
    offsets = [
        entry_of(tensor_of(model, names[i]), "offset").value
        for i, names in ((0, tables[0]), (1, tables[1]))
    ]
    assert offsets[0] == offsets[1]


@dataclass(frozen=True)
class Case:
    """A change to the model, and words that the refusal must have."""

    id: str
    change: Change
    words: tuple[str, ...]


def add_node(model: Any, op_type: str, **attributes: object) -> None:
    node = helper.make_node(op_type, ["const_two"], ["new"], "new", **attributes)
    model.graph.node.append(node)


def add_attribute(model: Any, name: str, value: Any) -> None:
    node_of(model, QUERY).attribute.append(helper.make_attribute(name, value))


def set_opsets(model: Any, *opsets: tuple[str, int]) -> None:
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets)


SUBGRAPH = helper.make_graph([], "inner", [], [])
FORMAT_CASES = [
    Case("function", lambda m: m.functions.add(name="f"), ("'functions' in the model",)),
    Case("training", lambda m: m.training_info.add(), ("'training_info'",)),
    Case("metadata", lambda m: m.metadata_props.add(key="a"), ("'metadata_props'",)),
    Case("sparse", lambda m: m.graph.sparse_initializer.add(), ("'sparse_initializer'",)),
    Case(
        "quantization annotation",
        lambda m: m.graph.quantization_annotation.add(tensor_name="x"),
        ("'quantization_annotation'",),
    ),
    Case(
        "subgraph",
        lambda m: add_attribute(m, "body", SUBGRAPH),
        ("'g, a subgraph'", "'body'", QUERY),
    ),
    Case("subgraphs", lambda m: add_attribute(m, "bodies", [SUBGRAPH]), ("'graphs, subgraphs'",)),
    Case("text", lambda m: add_attribute(m, "path", "/etc/passwd"), ("'s, a text'", "'path'")),
    Case(
        "tensor attribute",
        lambda m: add_attribute(m, "value", numpy_helper.from_array(np.ones(1))),
        ("'t, a tensor'",),
    ),
    Case("sequence", lambda m: m.graph.input[0].type.sequence_type.SetInParent(),
         ("'sequence_type'",)),
    Case(
        "float_data",
        lambda m: tensor_of(m, "const_two").float_data.append(2),
        ("'float_data'", "'const_two'"),
    ),
    Case("unknown field", lambda m: m.MergeFromString(b"\xc0\x3e\x01"), ("unknown field 1000",)),
    Case("opset 22", lambda m: set_opsets(m, ("", 22), ("com.microsoft", 1)),
         ("another version", "ai.onnx 22, com.microsoft 1", "expected ai.onnx 21")),
    Case("no opset", lambda m: set_opsets(m), ("operator sets none",)),
    Case("opset twice", lambda m: set_opsets(m, ("", 21), ("", 21)), ("operator sets",)),
    Case("other opset", lambda m: set_opsets(m, ("", 21), ("evil", 1)), ("evil 1",)),
    Case("microsoft 2", lambda m: set_opsets(m, ("", 21), ("com.microsoft", 2)),
         ("com.microsoft 2, expected",)),
    Case("IR version", lambda m: setattr(m, "ir_version", 11), ("IR version 11, expected 10",)),
]  # fmt: skip
NODE_CASES = [
    Case("operator", lambda m: add_node(m, "RandomNormalLike"), ("'RandomNormalLike'", "'new'")),
    Case("microsoft operator", lambda m: add_node(m, "Gelu", domain="com.microsoft"),
         ("'Gelu' of 'com.microsoft'",)),
    Case("standard name in another domain", lambda m: add_node(m, "Neg", domain="evil"),
         ("'Neg' of 'evil'",)),
    Case("attribute", lambda m: add_node(m, "Neg", axis=1), ("'axis' in Neg 'new'",)),
    Case("attribute twice", lambda m: add_attribute(m, "bits", 4), ("'bits'", "twice")),
    Case(
        "attribute of another kind",
        lambda m: attribute_of(node_of(m, QUERY), "K").CopyFrom(helper.make_attribute("K", 1.0)),
        ("'K'", "as type 1, expected one int"),
    ),
    Case(
        "attribute of two kinds",
        lambda m: attribute_of(node_of(m, QUERY), "K").ints.append(1),
        ("'K'", "expected one int"),
    ),
    Case(
        "attribute not a number",
        lambda m: setattr(attribute_of(node_of(m, NORM), "epsilon"), "f", float("nan")),
        ("nan as 'epsilon'",),
    ),
    Case("too few inputs", lambda m: node_of(m, QUERY).input.pop(), ("2 inputs, expected 3 to 4",)),
    Case("too many outputs", lambda m: node_of(m, QUERY).output.append("x"), ("2 outputs",)),
    Case("input left out", lambda m: set_input(m, QUERY, 0, ""), ("leaves out an input",)),
    Case("value twice", lambda m: set_output(m, CUT, 0, f"{QUERY}"), (CUT, "value already")),
    Case("value of a tensor", lambda m: set_output(m, CUT, 0, "const_two"), ("value already",)),
    Case("undefined value", lambda m: set_input(m, CUT, 0, "nowhere"), ("reads 'nowhere'",)),
    Case("wrong order", lambda m: m.graph.node.insert(0, m.graph.node.pop()), ("nothing before",)),
    Case(
        "too many nodes",
        lambda m: m.graph.node.extend([m.graph.node[0]] * 32_768),
        ("expected up to 32,768",),
    ),
]  # fmt: skip


def set_input(model: Any, node: str, index: int, name: str) -> None:
    node_of(model, node).input[index] = name


def set_output(model: Any, node: str, index: int, name: str) -> None:
    node_of(model, node).output[index] = name


def set_int(model: Any, node: str, name: str, value: int) -> None:
    attribute_of(node_of(model, node), name).i = value


def set_size(value: Any, index: int, size: int | str) -> None:
    dim = value.type.tensor_type.shape.dim[index]
    dim.Clear()
    setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)


INTERFACE_CASES = [
    Case("input name", lambda m: setattr(m.graph.input[0], "name", "ids"),
         ("input 'ids' int64 [batch_size, sequence_length], expected 'input_ids'",)),
    Case(
        "input type",
        lambda m: setattr(m.graph.input[1].type.tensor_type, "elem_type", 6),
        ("'attention_mask' int32", "expected 'attention_mask' int64"),
    ),
    Case("fixed batch", lambda m: set_size(m.graph.input[0], 0, 1),
         ("int64 [1, sequence_length]",)),
    Case(
        "more dimensions",
        lambda m: m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1),
        ("input 'input_ids'",),
    ),
    Case("layer left out", lambda m: m.graph.input.pop(4), ("input",)),
    Case("input too many", lambda m: m.graph.input.append(m.graph.input[0]), ("11 inputs",)),
    Case("no inputs", lambda m: m.graph.ClearField("input"), ("0 inputs",)),
    Case("no outputs", lambda m: m.graph.ClearField("output"), ("'0' as the number of logits",)),
    Case("vocabulary", lambda m: set_size(m.graph.output[0], 2, "v"), ("'v' as the number of lo",)),
    Case("head", lambda m: set_size(m.graph.input[2], 3, -64), ("'-64' as the number of numbers",)),
    Case("rank of the cache", lambda m: m.graph.input[2].type.tensor_type.shape.dim.pop(),
         ("'0' as the number of heads",)),
    Case("other cache", lambda m: set_size(m.graph.input[5], 1, 3), ("past_key_values.1.value",)),
    Case("two positions", lambda m: set_size(m.graph.output[0], 1, 2), ("output 'logits'",)),
    Case("present", lambda m: set_size(m.graph.output[3], 2, "past_sequence_length"),
         ("expected 'present.1.key'",)),
    Case("output twice", lambda m: m.graph.output.append(m.graph.output[0]), ("10 outputs",)),
    Case("output computed by nobody", lambda m: set_output(m, HEAD, 0, "other"),
         ("no node that computes the output 'logits'",)),
    Case("input that is a tensor", lambda m: rename_tensor(m, "const_two", "input_ids"),
         ("'input_ids' as input and as tensor",)),
    Case(
        "shape told of a value",
        lambda m: m.graph.value_info.append(helper.make_tensor_value_info(QUERY, 1, [1, 1, 1])),
        (f"says of {QUERY!r} that it is float32 [1, 1, 1], expected nothing",),
    ),
    Case("cut of the head", lambda m: set_input(m, CUT, 1, "const_1"), (CUT, "last position")),
    Case("no cut", lambda m: setattr(node_of(m, CUT), "name", "cut"), (CUT, "last position")),
]  # fmt: skip


def rename_tensor(model: Any, old: str, new: str) -> None:
    tensor_of(model, old).name = new
    del model.graph.value_info[:]


def set_dims(model: Any, name: str, *dims: int, length: int | None = None) -> None:
    """Give a tensor another shape; with `length` also another size in the file."""
    tensor = tensor_of(model, name)
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if length is not None:
        entry_of(tensor, "length").value = str(length)
    del model.graph.value_info[:]


def set_entry(model: Any, key: str, value: str) -> None:
    entry_of(tensor_of(model, f"{QUERY}.weight_quantized"), key).value = value


def add_entry(model: Any, key: str, value: str) -> None:
    tensor_of(model, f"{QUERY}.weight_quantized").external_data.add(key=key, value=value)


def repeat_tensor(model: Any) -> None:
    """Add tensors over the same bytes, each with a name of its own."""
    for index in range(100):
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensor_of(model, f"{EMBEDDING}.weight_table"))
        copy.name = f"copy {index}"


SCALES = f"{QUERY}.weight_scales"
TENSOR_CASES = [
    Case("data type", lambda m: setattr(tensor_of(m, "const_two"), "data_type", 8),
         ("'const_two' has data type 8, expected one of float32",)),
    Case("negative size", lambda m: set_dims(m, SCALES, 256, -2), ("[256, -2]",)),
    Case("size zero", lambda m: set_dims(m, SCALES, 0), ("[0]",)),
    Case("two sizes that overflow", lambda m: set_dims(m, SCALES, 1 << 33, 1 << 33), ("elements",)),
    Case("nine dimensions", lambda m: set_dims(m, SCALES, *[1] * 9), ("up to 8 sizes",)),
    Case("tensor twice", lambda m: m.graph.initializer.append(m.graph.initializer[0]), ("two te",)),
    Case("no name", lambda m: rename_tensor(m, "const_two", ""), ("without a name",)),
    Case(
        "too few bytes in the graph",
        lambda m: setattr(tensor_of(m, "const_two"), "raw_data", b"\0\0\0"),
        ("has 3 bytes in the graph, expected 4 for float32 []",),
    ),
    Case(
        "in the graph and in the file",
        lambda m: setattr(tensor_of(m, SCALES), "raw_data", b"\0\0\0"),
        ("in the graph and in a file at once",),
    ),
    Case(
        "in the file and in the graph",
        lambda m: tensor_of(m, "const_two").external_data.add(key="location", value="x"),
        ("in the graph and in a file at once",),
    ),
    Case("nowhere", lambda m: tensor_of(m, SCALES).MergeFromString(b"\x70\x07"),
         ("data_location 7, expected 0 or 1",)),
    Case("other file", lambda m: set_entry(m, "location", "../model.onnx.data"),
         ("in the file '../model.onnx.data', expected 'model.onnx.data'",)),
    Case("absolute path", lambda m: set_entry(m, "location", "/etc/passwd"), ("'/etc/passwd'",)),
    Case("memory", lambda m: set_entry(m, "location", "*/_ORT_MEM_ADDR_/*"), ("_ORT_MEM_ADDR_",)),
    Case("negative offset", lambda m: set_entry(m, "offset", "-1"), ("the offset '-1', expected",)),
    Case("no offset", lambda m: set_entry(m, "offset", ""), ("the offset ''",)),
    Case("digits of elsewhere", lambda m: set_entry(m, "offset", "١"), ("the offset '١'",)),
    Case("long number", lambda m: set_entry(m, "offset", "9" * 5000), ("the offset '999",)),
    Case("behind the end", lambda m: set_entry(m, "offset", "999999999"),
         ("'model.onnx.data' has", "1,000,032,767", "cut off")),
    Case("other length", lambda m: set_entry(m, "length", "1"),
         ("has 1 bytes in 'model.onnx.data', expected 32,768 for uint8 [256, 2, 64]",)),
    Case("unknown key", lambda m: add_entry(m, "mode", "w"), ("the external data key 'mode'",)),
    Case("key twice", lambda m: add_entry(m, "offset", "0"), ("'offset' twice",)),
    Case("many over the same bytes", repeat_tensor, ("each byte may be in two",)),
    Case("too many tensors", lambda m: m.graph.initializer.extend([onnx.TensorProto()] * 65_536),
         ("expected up to 65,536",)),
]  # fmt: skip


def attend_elsewhere(model: Any, index: int, values: Any) -> None:
    """Give the attention of one layer a constant where a length is expected."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int32), "mine"))
    set_input(model, ATTENTION, index, "mine")


def exchange(model: Any, names: tuple[str, str], field: str, index: int) -> None:
    first, second = (getattr(node_of(model, name), field) for name in names)
    first[index], second[index] = second[index], first[index]


def compute_weights(model: Any) -> None:
    node = helper.make_node("Neg", [f"{QUERY}.weight_quantized"], ["mine"], "mine")
    model.graph.node.insert(0, node)
    set_input(model, QUERY, 1, "mine")


def attend_in_parts(model: Any) -> None:
    """Make one layer's attention of another operator."""
    node = node_of(model, ATTENTION)
    index = list(model.graph.node).index(node)
    parts = [
        helper.make_node("Neg", [source], [output], output)
        for source, output in zip([node.input[0], *node.input[3:5]], node.output, strict=True)
    ]
    model.graph.node.remove(node)
    for part in parts:
        model.graph.node.insert(index, part)


def take_another_head(model: Any) -> None:
    """Let a small matrix compute the logits."""
    head, other = node_of(model, HEAD), node_of(model, QUERY)
    head.input.pop()
    head.input[1:] = other.input[1:]
    del head.attribute[:]
    head.attribute.extend(other.attribute)


KEYS = "model.layers.0.self_attn.v_proj"
LAYERS = ("model.layers.0.self_attn", ATTENTION)
GEOMETRY_CASES = [
    Case("rows", lambda m: set_int(m, QUERY, "N", 1 << 20),
         (QUERY, "uint8 [256, 2, 64], expected uint8 [1048576, 2, 64]")),
    Case("no rows", lambda m: set_int(m, QUERY, "N", 0), ("N 0, expected 1 to",)),
    Case("width", lambda m: set_int(m, QUERY, "K", 512), ("expected uint8 [256, 4, 64]",)),
    Case("width within a block", lambda m: set_int(m, QUERY, "K", 255),
         ("reads rows of 256 numbers", "expected 255")),
    Case("bits", lambda m: set_int(m, QUERY, "bits", 3), ("bits 3, expected 4 or 8",)),
    Case("other bits", lambda m: set_int(m, QUERY, "bits", 8), ("expected uint8 [256, 2, 128]",)),
    Case("block", lambda m: set_int(m, QUERY, "block_size", 48), ("block_size 48, expected 16",)),
    Case("accuracy", lambda m: set_int(m, QUERY, "accuracy_level", 5), ("accuracy_level 5",)),
    Case("scales", lambda m: set_dims(m, SCALES, 2, 256),
         ("[2, 256]", "expected float32 [256, 2]")),
    Case("fewer scales", lambda m: set_dims(m, SCALES, 2, length=8), ("as scales the tensor",)),
    Case("zero points", lambda m: set_dims(m, f"{EMBEDDING}.weight_zero_points", 2, length=2),
         ("GatherBlockQuantized 'model.embed_tokens' has as zero points the tensor",)),
    Case("zero points of a product", lambda m: set_input(m, HEAD, 3, "const_two"),
         ("MatMulNBits 'logits' has as zero points the tensor",)),
    Case("fewer logits", take_another_head, ("gives 256 logits, expected 1,024",)),
    Case("weights that are computed", compute_weights, ("computes its weights 'mine'",)),
    Case("table of other rows", lambda m: set_dims(m, f"{EMBEDDING}.weight_table", 2, 131072),
         ("as table the tensor", "expected uint8 [1024, 131072]")),
    Case("table of 4 bits", lambda m: set_int(m, EMBEDDING, "bits", 4), ("bits 4, expected 8",)),
    Case("axis", lambda m: set_int(m, EMBEDDING, "gather_axis", 1), ("gather_axis 1, expected 0",)),
    Case("other axis", lambda m: set_int(m, EMBEDDING, "quantize_axis", 0), ("quantize_axis 0",)),
    Case("scales of the table", lambda m: set_dims(m, f"{EMBEDDING}.weight_scales", 2, 1024),
         ("GatherBlockQuantized 'model.embed_tokens' has as scales the tensor",)),
    Case("other ids", lambda m: set_input(m, EMBEDDING, 1, "attention_mask"),
         ("looks up 'attention_mask', expected 'input_ids'",)),
    Case("norm", lambda m: set_input(m, NORM, 2, "model.layers.0.self_attn.q_norm.weight"),
         ("reads rows of 256 numbers", "expected 64")),
    Case("norm of a matrix", lambda m: set_input(m, NORM, 2, SCALES), ("as weight the tensor",)),
    Case("norm of a shorter sum", lambda m: set_input(m, NORM, 0, KEYS), ("rows of 128 numbers",)),
    Case("norm and a shorter sum", lambda m: set_input(m, NORM, 1, KEYS), ("rows of 128 numbers",)),
    Case("norm of an own weight", lambda m: set_input(m, "model.layers.0.input_layernorm", 1,
         "model.layers.0.self_attn.q_norm.weight"), ("joins rows of 256 and 64 numbers",)),
    Case("heads", lambda m: set_int(m, ATTENTION, "num_heads", 3), ("num_heads 3, expected 2 to",)),
    Case("more heads", lambda m: set_int(m, ATTENTION, "num_heads", 8), ("rows of 512 numbers",)),
    Case("key heads", lambda m: set_int(m, ATTENTION, "kv_num_heads", 0), ("expected 2",)),
    Case("no rotation", lambda m: set_int(m, ATTENTION, "do_rotary", 0), ("do_rotary 0",)),
    Case("pairs", lambda m: set_int(m, ATTENTION, "rotary_interleaved", 1), ("interleaved 1",)),
    Case("cosines", lambda m: set_dims(m, "rotary.cos", 1024, 16),
         ("as cosines the tensor", "expected float32 [1024, 32]")),
    Case("keys for queries", lambda m: set_input(m, ATTENTION, 0, KEYS), ("rows of 128 numbers",)),
    Case("queries for values", lambda m: set_input(m, ATTENTION, 2, QUERY),
         (ATTENTION, "rows of 256 numbers", "expected 128")),
    Case("fewer sines", lambda m: set_dims(m, "rotary.sin", 1, 32, length=128),
         ("as sines the tensor", "expected float32 [512, 32]")),
    Case("cache of another layer", lambda m: exchange(m, LAYERS, "input", 3),
         ("reads its cache from 'past_key_values.1.key'",)),
    Case("present of another layer", lambda m: exchange(m, LAYERS, "output", 1),
         ("does not write 'present.0.key'",)),
    Case("own length", lambda m: attend_elsewhere(m, 5, [1_000_000]), ("lengths from 'mine'",)),
    Case("own total", lambda m: attend_elsewhere(m, 6, 1_000_000), ("and 'mine', expected",)),
    Case("length of the ids", lambda m: set_input(m, "model/num_tokens", 0, "input_ids"),
         ("the count of the attention mask",)),
    Case("layer without attention", attend_in_parts, ("no GroupQueryAttention for layer 1",)),
]  # fmt: skip
ALL_CASES = [*FORMAT_CASES, *NODE_CASES, *INTERFACE_CASES, *TENSOR_CASES, *GEOMETRY_CASES]


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.id)
def test_a_changed_model_is_refused(refused: Refused, case: Case) -> None:
    problem = refused(case.change).problem
    assert [word for word in case.words if word not in problem] == [], problem


PACKED, UNPACKED = f"{QUERY}.weight_quantized", f"{QUERY}.weight/float32"
HALVES = "model.layers.0.self_attn.q_rotary/first_half"
PORTABLE_CASES = [
    Case("axis of scales", lambda m: set_int(m, UNPACKED, "axis", 5), ("has axis 5",)),
    Case("block", lambda m: set_int(m, UNPACKED, "block_size", 64), ("[4, 256]",)),
    Case("negative block", lambda m: set_int(m, UNPACKED, "block_size", -1), ("block_size -1",)),
    Case("scales that are computed", lambda m: set_input(m, UNPACKED, 1, EMBEDDING),
         ("computes its scales",)),
    Case("unpacks numbers", lambda m: set_input(m, UNPACKED, 0, "const_two"),
         ("no packed tensor",)),
    Case("zero points", lambda m: node_of(m, UNPACKED).input.append("const_two"),
         ("as zero points the tensor 'const_two' float32 []",)),
    Case("three halves", lambda m: add_outputs(m, 20), ("has 22 outputs, expected 2 to 16",)),
    Case("two halves as one", lambda m: set_int(m, HALVES, "num_outputs", 1),
         ("has num_outputs 1 and 2 outputs",)),
    Case("halves without a number", lambda m: node_of(m, HALVES).attribute.pop(),
         ("has num_outputs None and 2 outputs",)),
]  # fmt: skip


def add_outputs(model: Any, count: int) -> None:
    node_of(model, HALVES).output.extend(f"part {index}" for index in range(count))


@pytest.mark.parametrize("case", PORTABLE_CASES, ids=lambda case: case.id)
def test_a_changed_portable_model_is_refused(
    refused: Refused, onnx_demo: MakeOnnx, case: Case
) -> None:
    problem = refused(case.change, onnx_demo("int4", is_portable=True)).problem
    assert [word for word in case.words if word not in problem] == [], problem


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
class TestFiles:
    """What the two files may be on the disk."""

    def refusal(self, folder: Path) -> str:
        with pytest.raises(PackageError) as caught:
            read_onnx(folder)
        assert caught.value.fix
        return caught.value.problem

    def test_missing(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        assert self.refusal(copied) == f"{str(copied / name)!r} is missing."

    def test_folder(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        (copied / name).mkdir()
        assert "is a folder, expected a file" in self.refusal(copied)

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a privilege on Windows")
    @pytest.mark.trust("T-IN-11")
    def test_symlink(self, copied: Path, demo: Path, name: str) -> None:
        (copied / name).unlink()
        (copied / name).symlink_to(demo / name)
        assert "is a symbolic link" in self.refusal(copied)

    @pytest.mark.trust("T-IN-12")
    def test_hard_link(self, copied: Path, name: str) -> None:
        os.link(copied / name, copied.parent / "outside")
        with pytest.raises(PackageError, match="is a hard link: the same bytes have 2") as caught:
            read_onnx(copied)
        assert "copy the folder" in caught.value.fix

    def test_cut_off(self, copied: Path, name: str) -> None:
        size_bytes = (copied / name).stat().st_size
        os.truncate(copied / name, size_bytes - 1)
        expected = {
            "model.onnx": f"is not an ONNX model: its {size_bytes - 1:,} bytes are damaged",
            "model.onnx.data": f"'model.onnx.data' has {size_bytes - 1:,} bytes",
        }
        problem = self.refusal(copied)
        assert expected[name] in problem
        assert name == "model.onnx" or f"ends at byte {size_bytes:,}" in problem

    def test_empty(self, copied: Path, name: str) -> None:
        os.truncate(copied / name, 0)
        assert ("is empty" if name == "model.onnx" else "has 0 bytes") in self.refusal(copied)


def test_a_graph_that_cannot_be_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(PackageError, match="cannot be read: Permission denied") as caught:
        read_onnx(copied)
    assert "permissions" in caught.value.fix


def test_data_that_vanishes_while_it_is_looked_at(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_tensors, "open_inside", lambda folder, name: folder / "gone")
    with pytest.raises(PackageError, match="gone' cannot be read: No such file"):
        read_onnx(copied)


def test_a_graph_with_its_weights_inside_is_too_large(copied: Path) -> None:
    os.truncate(copied / "model.onnx", MAX_MODEL_BYTES + 1)
    with pytest.raises(PackageError, match=r"has 16\.8 MB, expected a graph without its weights"):
        read_onnx(copied)


def test_deep_nesting_is_refused_and_not_followed(copied: Path) -> None:
    """Unknown groups, which readers of protocol buffers enter one by one."""
    for text in (b"\x1b" * 100_000, b"\xfb\x3f" * 100_000):
        (copied / "model.onnx").write_bytes(text)
        with pytest.raises(PackageError, match="is not an ONNX model"):
            read_onnx(copied)


@pytest.mark.parametrize("level", [-1, 5])
def test_an_accuracy_level_that_does_not_exist(demo: Path, level: int) -> None:
    with pytest.raises(ValueError, match=f"accuracy_level is {level}; expected 0 to 4"):
        read_onnx(demo, accuracy_level=level)


@pytest.mark.parametrize("count", [0, -1, 1 << 40])
def test_a_count_of_positions_that_cannot_be(demo: Path, count: int) -> None:
    with pytest.raises(ValueError, match=f"num_last_positions is {count}; expected 1"):
        read_onnx(demo, num_last_positions=count)


def test_without_protobuf_the_extra_is_named(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf.descriptor_pb2", None)
    onnx_proto._model_class.cache_clear()
    with pytest.raises(MissingExtraError, match="needs 'onnxruntime'") as caught:
        read_onnx(demo)
    assert caught.value.fix == "pip install 'qwen-edge[onnx]'"


@pytest.mark.parametrize("level", [0, 1, 4])
def test_the_accuracy_level_is_set_everywhere_and_nothing_else(demo: Path, level: int) -> None:
    expected = read_proto(demo)
    products = [node for node in expected.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 29
    for node in products:
        attribute_of(node, "accuracy_level").i = level
    text = read_onnx(demo, accuracy_level=level).text
    assert onnx.load_model_from_string(text) == expected


def test_the_accuracy_level_may_differ_by_bits(demo: Path) -> None:
    """Only the head has 8 bits here; 4 bits are left out, and keep what the file says."""
    expected = read_proto(demo)
    attribute_of(node_of(expected, HEAD), "accuracy_level").i = 1
    text = read_onnx(demo, accuracy_level={8: 1}).text
    assert onnx.load_model_from_string(text) == expected


def test_the_accuracy_level_is_added_where_it_is_not_given(copied: Path) -> None:
    model = read_proto(copied)
    node_of(model, QUERY).attribute.pop()
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    unchanged = onnx.load_model_from_string(read_onnx(copied).text)
    assert "accuracy_level" not in [part.name for part in node_of(unchanged, QUERY).attribute]
    changed = onnx.load_model_from_string(read_onnx(copied, accuracy_level=1).text)
    assert attribute_of(node_of(changed, QUERY), "accuracy_level").i == 1


def test_more_positions_have_a_bound_of_their_own(demo: Path) -> None:
    """The norms use the same constant -1: the head must get another."""
    before, after = (
        read_proto(demo),
        onnx.load_model_from_string(read_onnx(demo, num_last_positions=5).text),
    )
    names = node_of(after, CUT).input
    assert numpy_helper.to_array(tensor_of(after, names[1])).tolist() == [-5]
    dims = [
        dim.dim_param or dim.dim_value for dim in after.graph.output[0].type.tensor_type.shape.dim
    ]
    assert dims == ["batch_size", "num_logits", 1024]
    after.graph.initializer.remove(tensor_of(after, names[1]))
    names[1] = node_of(before, CUT).input[1]
    set_size(after.graph.output[0], 1, 1)
    assert after == before


def test_the_new_bound_takes_no_name_that_is_used(copied: Path) -> None:
    model = read_proto(copied)
    taken = f"{CUT}/start"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), taken))
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    changed = onnx.load_model_from_string(read_onnx(copied, num_last_positions=2).text)
    assert node_of(changed, CUT).input[1] == f"{taken}_"


def test_every_edit_passes_the_checker(copied: Path) -> None:
    model = read_onnx(copied, accuracy_level=1, num_last_positions=3)
    (copied / "model.onnx").write_bytes(model.text)
    onnx.checker.check_model(str(copied / "model.onnx"))


def never_more_than_refused(folder: Path, text: bytes) -> None:
    (folder / "model.onnx").write_bytes(text)
    try:
        read_onnx(folder, accuracy_level=1, num_last_positions=2)
    except PackageError as error:
        assert error.fix
        assert len(str(error)) < 2_000


FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(copied: Path, demo: Path, data: Any) -> None:
    text = bytearray((demo / "model.onnx").read_bytes())
    places = st.integers(0, len(text) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        text[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        start, stop = sorted((data.draw(places), data.draw(places)))
        del text[start:stop]
    never_more_than_refused(copied, bytes(text))


@FUZZ
@given(text=st.binary(max_size=200))
def test_random_bytes_are_refused(copied: Path, text: bytes) -> None:
    (copied / "model.onnx").write_bytes(text)
    with pytest.raises(PackageError):
        read_onnx(copied)


def iter_messages(message: Any) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = value if field.is_repeated else [value]
            found += [inner for part in parts for inner in iter_messages(part)]
    return found


NUMBERS = st.integers(-(1 << 31), (1 << 31) - 1)
NAMES = st.sampled_from(["", "input_ids", "const_two", "Loop", "0", "model.onnx", "é" * 300])


def values_of(field: Any) -> st.SearchStrategy[Any]:
    """Return what a field may hold, as the `onnx` package sees it."""
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    by_type = {
        field.TYPE_STRING: NAMES,
        field.TYPE_BYTES: st.binary(max_size=20),
        field.TYPE_FLOAT: st.floats(width=32),
        field.TYPE_UINT64: st.integers(0, 1 << 63),
    }
    return by_type.get(field.type, NUMBERS)


def change_field(data: Any, message: Any) -> None:
    """Give one field of a message another value, or one value more or less."""
    field = data.draw(st.sampled_from(list(message.DESCRIPTOR.fields)), label="field")
    part = getattr(message, field.name)
    if field.is_repeated and len(part) and data.draw(st.booleans()):
        part.pop()
    elif field.message_type is not None:
        part.add() if field.is_repeated else part.SetInParent()
    elif field.is_repeated:
        part.append(data.draw(values_of(field)))
    else:
        setattr(message, field.name, data.draw(values_of(field)))


@FUZZ
@given(data=st.data())
def test_changed_fields_are_refused_or_harmless(copied: Path, demo: Path, data: Any) -> None:
    """Fields are changed in a sound message, so that checks behind the first are reached."""
    model = read_proto(demo)
    messages = iter_messages(model)
    for _ in range(data.draw(st.integers(1, 3))):
        change_field(data, messages[data.draw(st.integers(0, len(messages) - 1))])
    never_more_than_refused(copied, model.SerializeToString())
