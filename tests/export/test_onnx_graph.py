"""The ONNX model as it is written: what is in the file, and what ONNX Runtime makes of it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from qwen_edge.errors import UnsupportedArchitectureError
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.onnx_files import write_onnx_model
from qwen_edge.runtime.devices.providers import import_onnxruntime

CheckpointMaker = Callable[..., Path]
StoreMaker = Callable[..., Any]

NUM_LAYERS = 2
CONTEXT = 256
# model_type and changes to the tiny config.json.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "llama": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
}


@pytest.fixture
def write_model(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress_checkpoint: StoreMaker
) -> Callable[..., tuple[DecoderSpec, Path]]:
    """Return a writer of tiny models; returns the specification and the folder."""

    def write(
        model_type: str = "qwen3",
        recipe: str = "int4",
        name: str = "model",
        *,
        is_portable: bool = False,
        **changes: Any,
    ) -> tuple[DecoderSpec, Path]:
        folder = tmp_path / name
        folder.mkdir()
        checkpoint = make_checkpoint(tmp_path / "checkpoint", model_type, **changes)
        spec, store = compress_checkpoint(tmp_path / "spool", checkpoint, recipe)
        with store:
            write_onnx_model(
                spec, store, folder, max_context_tokens=CONTEXT, is_portable=is_portable
            )
        return spec, folder

    return write


def read_graph(folder: Path) -> Any:
    """Return the model of a folder without its weights."""
    return onnx.load(folder / "model.onnx", load_external_data=False)


def count(model: Any) -> Counter[str]:
    """Return how often every operator occurs."""
    return Counter(node.op_type for node in model.graph.node)


def attributes(node: Any) -> dict[str, Any]:
    """Return a node's attributes."""
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def optimise(folder: Path) -> Any:
    """Return the graph that ONNX Runtime runs on the CPU."""
    engine = import_onnxruntime()
    options = engine.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    engine.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx", load_external_data=False)


@pytest.mark.parametrize("name", MODELS)
def test_operators_are_those_of_the_fast_form(write_model: Any, name: str) -> None:
    model_type, changes = MODELS[name]
    spec, folder = write_model(model_type, **changes)
    model = read_graph(folder)
    found = count(model)
    assert found["GroupQueryAttention"] == NUM_LAYERS
    assert found["MatMulNBits"] == 7 * NUM_LAYERS + 1
    assert found["SkipSimplifiedLayerNormalization"] == 2 * NUM_LAYERS
    assert found["GatherBlockQuantized"] == 1
    assert found["MatMul"] == 0
    for node in model.graph.node:
        facts = attributes(node)
        if node.op_type == "GroupQueryAttention":
            assert (facts["num_heads"], facts["kv_num_heads"]) == (4, spec.num_kv_heads)
            assert facts["do_rotary"] == 1 and facts["rotary_interleaved"] == 0
            assert facts["scale"] == pytest.approx(spec.head_dim**-0.5)
        if node.op_type == "MatMulNBits":
            assert facts["bits"] == (8 if node.name == "logits" else 4)
            # Widths of 64 and 128: the head's rows in one block, the others in one group.
            assert facts["block_size"] == facts["K"]
            assert facts["accuracy_level"] == 4


@pytest.mark.parametrize("recipe", ["int8", "fp16"])
def test_other_recipes_have_their_operators(write_model: Any, recipe: str) -> None:
    _, folder = write_model(recipe=recipe)
    found = count(read_graph(folder))
    num_matrices = 7 * NUM_LAYERS + 1
    expected = (num_matrices, 0) if recipe == "int8" else (0, num_matrices)
    assert (found["MatMulNBits"], found["MatMul"]) == expected


@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
def test_inputs_and_outputs_are_what_other_programs_expect(
    write_model: Any, is_portable: bool
) -> None:
    spec, folder = write_model(is_portable=is_portable)
    graph = read_graph(folder).graph
    found = {}
    for value in [*graph.input, *graph.output]:
        tensor = value.type.tensor_type
        dims = [d.dim_param or d.dim_value for d in tensor.shape.dim]
        found[value.name] = (onnx.TensorProto.DataType.Name(tensor.elem_type), dims)
    batch, total = "batch_size", "total_sequence_length"
    expected: dict[str, tuple[str, list[str | int]]] = {
        "input_ids": ("INT64", [batch, "sequence_length"]),
        "attention_mask": ("INT64", [batch, total]),
    }
    cache = [spec.num_kv_heads, "past_sequence_length", spec.head_dim]
    for kind in ("past_key_values", "present"):
        if kind == "present":
            expected["logits"] = ("FLOAT", [batch, 1, spec.vocab_size])
            cache = [spec.num_kv_heads, total, spec.head_dim]
        for index in range(NUM_LAYERS):
            for part in ("key", "value"):
                expected[f"{kind}.{index}.{part}"] = ("FLOAT", [batch, *cache])
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
@pytest.mark.parametrize("name", MODELS)
def test_only_what_the_architecture_has_is_in_the_graph(
    write_model: Any, name: str, is_portable: bool
) -> None:
    """q/k norm in Qwen3, biases of query, key and value in Qwen2, neither in Llama."""
    model_type, changes = MODELS[name]
    _, folder = write_model(model_type, is_portable=is_portable, **changes)
    initializers = {item.name for item in read_graph(folder).graph.initializer}
    norms = {item for item in initializers if item.endswith(("q_norm.weight", "k_norm.weight"))}
    biases = {item for item in initializers if item.endswith("_proj.bias")}
    assert len(norms) == (2 * NUM_LAYERS if name == "qwen3" else 0)
    assert len(biases) == (3 * NUM_LAYERS if name == "qwen2" else 0)


@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
def test_the_file_is_well_formed(write_model: Any, is_portable: bool) -> None:
    """Names are unique, all weights lie in the one file beside it, and the checker agrees."""
    _, folder = write_model(is_portable=is_portable)
    onnx.checker.check_model(str(folder / "model.onnx"))
    model = read_graph(folder)
    domains = {entry.domain: entry.version for entry in model.opset_import}
    assert domains == ({"": 21} if is_portable else {"": 21, "com.microsoft": 1})
    assert {node.domain for node in model.graph.node} == set(domains)
    assert model.ir_version == 10
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names)
    size = (folder / "model.onnx.data").stat().st_size
    for item in model.graph.initializer:
        if external_data_helper.uses_external_data(item):
            facts = external_data_helper.ExternalDataInfo(item)
            assert facts.location == "model.onnx.data"
            assert facts.offset + facts.length <= size
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_a_tied_head_is_the_embeddings_bytes(
    write_model: Any, is_tied: bool, is_portable: bool
) -> None:
    spec, folder = write_model(is_portable=is_portable, tie_word_embeddings=is_tied)
    model = read_graph(folder)
    places = {
        item.name: external_data_helper.ExternalDataInfo(item)
        for item in model.graph.initializer
        if external_data_helper.uses_external_data(item)
    }
    table = places["model.embed_tokens.weight_table"]
    large = [facts for facts in places.values() if facts.length == table.length]
    assert table.length == spec.vocab_size * spec.hidden_size
    assert len({facts.offset for facts in large}) == (1 if is_tied else 2)


@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
def test_equal_exports_are_equal_bytes(write_model: Any, is_portable: bool) -> None:
    _, first = write_model(name="first", is_portable=is_portable)
    _, second = write_model(name="second", is_portable=is_portable)
    for name in ("model.onnx", "model.onnx.data"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
def test_the_head_reads_the_last_position_only(write_model: Any, is_portable: bool) -> None:
    """The runtime finds the node by this name and widens it."""
    _, folder = write_model(is_portable=is_portable)
    model = read_graph(folder)
    node = next(n for n in model.graph.node if n.name == "lm_head/last_positions")
    values = {
        i.name: onnx.numpy_helper.to_array(i)
        for i in model.graph.initializer
        if i.name in node.input
    }
    bounds = [values[name].tolist() for name in node.input[1:]]
    assert node.op_type == "Slice" and bounds == [[-1], [np.iinfo(np.int64).max], [1]]
    head = next(n for n in model.graph.node if n.output[0] == "logits")
    assert head.input[0] == node.output[0]


@pytest.mark.parametrize("head_dim", [8, 24])
def test_heads_that_onnxruntime_cannot_attend_with_are_refused(
    write_model: Any, head_dim: int
) -> None:
    """Such a file would be written, loaded, and refused at the first token."""
    with pytest.raises(UnsupportedArchitectureError, match=f"{head_dim} dimensions") as caught:
        write_model(head_dim=head_dim)
    assert "--portable" in caught.value.fix
    _, folder = write_model(name="portable", is_portable=True, head_dim=head_dim)
    assert count(optimise(folder))["MatMulNBits"] == 7 * NUM_LAYERS + 1


def test_rotary_tables_hold_the_context_and_the_attention_factor(write_model: Any) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    spec, folder = write_model(rope_scaling=yarn)
    model = onnx.load(folder / "model.onnx")
    tables = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.name.startswith("rotary.")
    }
    assert spec.rope.attention_factor > 1.1
    assert tables["rotary.cos"].shape == (CONTEXT, spec.head_dim // 2)
    np.testing.assert_allclose(tables["rotary.cos"][0], spec.rope.attention_factor, rtol=1e-6)
    square = tables["rotary.cos"] ** 2 + tables["rotary.sin"] ** 2
    np.testing.assert_allclose(square, spec.rope.attention_factor**2, rtol=1e-5)


@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_fuses_what_it_should(write_model: Any, name: str, is_portable: bool) -> None:
    """No norm is left in pieces, and no matrix is dequantised at every step."""
    model_type, changes = MODELS[name]
    spec, folder = write_model(model_type, is_portable=is_portable, **changes)
    found = count(optimise(folder))
    num_norms = 1 + (2 * NUM_LAYERS if spec.has_qk_norm else 0)
    if is_portable:
        num_norms += 2 * NUM_LAYERS
        assert found["FusedMatMul"] == NUM_LAYERS  # the keys are not turned
    assert found["SimplifiedLayerNormalization"] == num_norms
    assert found["MatMulNBits"] == 7 * NUM_LAYERS + 1
    assert found["QuickGelu"] == NUM_LAYERS  # SiLU
    left = {"Pow", "ReduceMean", "Sqrt", "Div", "Sigmoid", "DequantizeLinear", "Cast"}
    # Casts: ids, the mask and what they make; never a matrix.
    assert not (left - {"Cast"}) & set(found) and found["Cast"] <= 4
