"""The native graph: what the CPU plugin fuses, names, determinism, padding and holes.

Whether the numbers are Transformers' is the business of test_parity.py; other programs and the
NPU plugin are in test_graph_in_engines.py.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.export.array_weights import ArrayWeights, make_random_arrays
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.openvino_graph import (
    build_decoder,
    build_embedding_model,
    build_head_model,
    build_layer_model,
)
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.engine import import_openvino

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
VOCAB = 96
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def make_spec(model_type: str = "qwen3", **changes: object) -> DecoderSpec:
    """Return a tiny architecture."""
    config: dict[str, object] = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rope_theta": 10_000.0,
    }
    return read_spec(config | changes)


def build(spec: DecoderSpec, seed: int = 0) -> Any:
    """Build the whole model with random weights."""
    return build_decoder(spec, ArrayWeights(make_random_arrays(spec, seed)))


def compile_on_cpu(model: Any) -> Any:
    """Compile for the CPU in float32."""
    return import_openvino().Core().compile_model(model, "CPU", EXACT)


def feed(request: Any, ids: Any, positions: Any, mask: Any, beam_idx: Any = None) -> Any:
    """Run one step; everything is [batch, ...]. Returns the logits."""
    batch = len(ids)
    inputs = {
        "input_ids": np.asarray(ids, np.int64),
        "attention_mask": np.asarray(mask, np.int64),
        "position_ids": np.asarray(positions, np.int64),
        "beam_idx": np.asarray(range(batch) if beam_idx is None else beam_idx, np.int32),
    }
    return request.infer(inputs)["logits"].copy()


@pytest.fixture(scope="module")
def compiled() -> Any:
    """A tiny Qwen3 on the CPU."""
    return compile_on_cpu(build(make_spec()))


VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "qwen3": ("qwen3", {}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-yarn": ("qwen3", {"rope_scaling": YARN}),
    "qwen3-bias": ("qwen3", {"attention_bias": True}),
    "qwen3-one-kv-head": ("qwen3", {"num_key_value_heads": 1}),
    "qwen2": ("qwen2", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "mlp_bias": True}),
    "llama-no-sharing": ("llama", {"num_key_value_heads": 4}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_cpu_plugin_fuses_every_layer(variant: str) -> None:
    """One attention with its cache per layer, norms and rotations fused, no loose softmax."""
    model_type, changes = VARIANTS[variant]
    spec = make_spec(model_type, **changes)
    operations = compile_on_cpu(build(spec)).get_runtime_model().get_ops()
    counts = Counter(node.get_rt_info()["layerType"].astype(str) for node in operations)
    norms_per_layer = 4 if spec.has_qk_norm else 2
    expected = {
        "ScaledDotProductAttention": spec.num_layers,
        "MemoryInput": 2 * spec.num_layers,
        "MemoryOutput": 2 * spec.num_layers,
        "RMS": norms_per_layer * spec.num_layers + 1,
        "RoPE": 2 * spec.num_layers,
        "FullyConnected": 7 * spec.num_layers + 1,
        "Softmax": 0,
        "MatMul": 1,  # the angles of the positions
    }
    assert {kind: counts[kind] for kind in expected} == expected


def test_gate_is_the_one_input_form() -> None:
    """A second input of `Swish` would cost the fused MLP of 16-bit weights on AMX machines."""
    gates = [node for node in build(make_spec()).get_ops() if node.get_type_name() == "Swish"]
    assert [len(node.inputs()) for node in gates] == [1, 1]


def test_inputs_outputs_and_variables_are_those_of_optimum_intel() -> None:
    """Other programs find the model's parts by these names and types."""
    model = build(make_spec())
    inputs = {port.get_any_name(): str(port.get_element_type()) for port in model.inputs}
    assert inputs == {
        "input_ids": "<Type: 'int64_t'>",
        "attention_mask": "<Type: 'int64_t'>",
        "position_ids": "<Type: 'int64_t'>",
        "beam_idx": "<Type: 'int32_t'>",
    }
    assert [port.get_any_name() for port in model.outputs] == ["logits"]
    assert str(model.output("logits").get_partial_shape()) == f"[?,?,{VOCAB}]"
    assert sorted(sink.get_variable_id() for sink in model.get_sinks()) == [
        "past_key_values.0.keypresent.0.key",
        "past_key_values.0.valuepresent.0.value",
        "past_key_values.1.keypresent.1.key",
        "past_key_values.1.valuepresent.1.value",
    ]


def test_weights_are_found_under_the_name_of_their_projection() -> None:
    """Every weight of the checkpoint is one constant; its product is named like the module."""
    spec = make_spec("qwen2", tie_word_embeddings=False)
    nodes = {node.get_friendly_name(): node for node in build(spec).get_ops()}
    for name in spec.tensor_shapes():
        assert nodes[name].get_type_name() == "Constant"
    assert nodes["model.layers.1.self_attn.o_proj"].get_type_name() == "MatMul"
    assert nodes["model.layers.1.self_attn.q_proj"].get_type_name() == "Add"
    assert nodes["lm_head"].get_type_name() == "MatMul"


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_name_is_left_to_openvino(variant: str) -> None:
    """Names are unique and ours; `Constant_304` would differ in the next build."""
    model_type, changes = VARIANTS[variant]
    names = [node.get_friendly_name() for node in build(make_spec(model_type, **changes)).get_ops()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name in names if re.fullmatch(r"[A-Z]\w*_\d+", name)] == []


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """Saved twice in one process, the files are equal."""
    ov = import_openvino()
    for name in ("first", "second"):
        ov.save_model(build(make_spec()), tmp_path / f"{name}.xml", compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        first, second = (tmp_path / f"{name}{suffix}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_layers_alone_compute_what_the_whole_model_computes() -> None:
    """Embedding, layers one by one, and head give the logits of the whole, padding included."""
    spec = make_spec(tie_word_embeddings=True)
    weights = ArrayWeights(make_random_arrays(spec, 0))
    ids = np.random.RandomState(1).randint(0, VOCAB, (2, 9))
    mask = np.ones((2, 9), np.int64)
    mask[1, :4] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    whole = compile_on_cpu(build_decoder(spec, weights)).create_infer_request()
    expected = feed(whole, ids, positions, mask)
    hidden = compile_on_cpu(build_embedding_model(spec, weights))([ids])[0]
    for layer_index in range(spec.num_layers):
        layer = compile_on_cpu(build_layer_model(spec, weights, layer_index))
        hidden = layer([hidden, mask, positions])["hidden_states_out"]
    logits = compile_on_cpu(build_head_model(spec, weights))([hidden])["logits"]
    is_real = mask.astype(bool)
    np.testing.assert_allclose(logits[is_real], expected[is_real], atol=1e-5)


def test_activation_scale_undoes_scaled_columns() -> None:
    """A weight divided column by column, and its input multiplied, give the same model."""
    spec = make_spec()
    arrays = make_random_arrays(spec, 0)
    scaled, scales = dict(arrays), dict[str, Any]()
    for name in spec.linear_shapes(0):
        width = arrays[name].shape[1]
        scales[name] = np.linspace(0.5, 2.0, width, dtype=np.float32)
        scaled[name] = (arrays[name] / scales[name]).astype(np.float32)
    ids, positions, mask = [[3, 14, 15, 92]], [[0, 1, 2, 3]], [[1, 1, 1, 1]]
    logits = [
        feed(compile_on_cpu(build_decoder(spec, weights)).create_infer_request(), *inputs)
        for weights in (ArrayWeights(arrays), ArrayWeights(scaled, scales))
        for inputs in [(ids, positions, mask)]
    ]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)


def test_last_logits_are_found_in_the_decoder(compiled: Any) -> None:
    """The runtime's cut finds our head, keeps the numbers and every fused attention."""
    model = build(make_spec())
    assert keep_last_logits(model, 2)
    cut = compile_on_cpu(model)
    inputs = [[3, 14, 15, 92]], [[0, 1, 2, 3]], [[1, 1, 1, 1]]
    logits = feed(cut.create_infer_request(), *inputs)
    full = feed(compiled.create_infer_request(), *inputs)
    np.testing.assert_allclose(logits, full[:, -2:], atol=1e-5)
    types = [
        node.get_rt_info()["layerType"].astype(str) for node in cut.get_runtime_model().get_ops()
    ]
    assert types.count("ScaledDotProductAttention") == 2


def test_left_padded_batch_gives_each_row_its_own_logits(compiled: Any) -> None:
    """Rows of different length in one batch, prompt and three steps, as if each were alone."""
    random = np.random.RandomState(3)
    rows = [random.randint(0, VOCAB, length).tolist() for length in (9, 4, 1)]
    longest = max(map(len, rows))
    together, mask = compiled.create_infer_request(), np.zeros((3, 0), np.int64)
    for step in range(4):
        width = longest if step == 0 else 1
        new = [[0] * (width - len(row)) + row[-width:] for row in rows]
        present = [[0] * (width - len(row)) + [1] * min(len(row), width) for row in rows]
        mask = np.concatenate([mask, present], axis=1)
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -width:]
        batch_logits = feed(together, new, positions, mask)[:, -1]
        for index, row in enumerate(rows):
            alone = feed(
                compiled.create_infer_request(), [row], [range(len(row))], [[1] * len(row)]
            )
            np.testing.assert_allclose(batch_logits[index], alone[0, -1], atol=1e-4)
            row.append(int(random.randint(0, VOCAB)))


def test_beam_index_goes_on_from_another_row(compiled: Any) -> None:
    """`beam_idx` decides whose cache a row continues."""
    request = compiled.create_infer_request()
    prompts = [[5, 6, 7], [50, 60, 70]]
    feed(request, prompts, [[0, 1, 2]] * 2, [[1] * 3] * 2)
    swapped = feed(request, [[8], [9]], [[3], [3]], [[1] * 4] * 2, beam_idx=[1, 0])
    for index, (prompt, token) in enumerate(zip(prompts[::-1], (8, 9), strict=True)):
        alone = feed(compiled.create_infer_request(), [[*prompt, token]], [range(4)], [[1] * 4])
        np.testing.assert_allclose(swapped[index, -1], alone[0, -1], atol=1e-4)


@st.composite
def fed_pieces(draw: st.DrawFn) -> list[tuple[bool, list[int]]]:
    """Pieces fed one after the other; False marks tokens that are taken back."""
    tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)
    pieces = draw(st.lists(st.tuples(st.booleans(), tokens), min_size=1, max_size=6))
    return [*pieces, (True, draw(tokens))]


@settings(deadline=None, max_examples=40)
@given(pieces=fed_pieces())
def test_holes_are_as_if_never_fed(compiled: Any, pieces: list[tuple[bool, list[int]]]) -> None:
    """Zeros in the mask, anywhere, give the logits of a cache without these tokens.

    Rejected tokens of speculation stay in the cache; the mask alone takes them back.
    """
    holed, clean = compiled.create_infer_request(), compiled.create_infer_request()
    holed.reset_state()
    clean.reset_state()
    mask: list[int] = []
    position = 0
    for is_kept, tokens in pieces:
        positions = [range(position, position + len(tokens))]
        logits = feed(holed, [tokens], positions, [mask + [1] * len(tokens)])
        mask += [int(is_kept)] * len(tokens)
        if is_kept:
            position += len(tokens)
            expected = feed(clean, [tokens], positions, [[1] * position])
            np.testing.assert_allclose(logits, expected, atol=2e-5)
