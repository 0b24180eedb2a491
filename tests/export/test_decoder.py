"""Reading config.json: what is understood, what is refused, and in which words."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import CheckpointError, EdgeError, UnsupportedArchitectureError
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.rope import RopeSpec, inverse_frequencies

QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
BASES = {"qwen3": QWEN3_4B, "qwen2": QWEN2, "llama": LLAMA}


def test_qwen3_4b_is_read_whole() -> None:
    """Every field of the published config of Qwen3-4B ends up in the specification."""
    assert read_spec(QWEN3_4B) == DecoderSpec(
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        num_layers=36,
        hidden_size=2560,
        intermediate_size=9728,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151936,
        rms_norm_eps=1e-6,
        rope=RopeSpec(theta=1_000_000.0),
        max_position_embeddings=40960,
        is_tied=True,
        has_qk_norm=True,
        has_attention_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
    )


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    # Counts as published: 4.02 B, 0.49 B and 1.24 B.
    [(QWEN3_4B, 4_022_468_096), (QWEN2, 494_032_768), (LLAMA, 1_235_814_400)],
    ids=["qwen3-4b", "qwen2.5-0.5b", "llama-3.2-1b"],
)
def test_number_of_parameters_is_the_published_one(
    config: dict[str, Any], num_parameters: int
) -> None:
    """The tensor names and shapes add up to the published size."""
    spec = read_spec(config)
    assert spec.num_parameters == num_parameters
    sizes = [int(np.prod(shape)) for shape in spec.tensor_shapes().values()]
    assert sum(sizes) == num_parameters


def test_untied_model_needs_its_head() -> None:
    """`lm_head.weight` is asked for exactly where the model is not tied."""
    tied = read_spec(QWEN3_4B)
    untied = read_spec(QWEN3_4B | {"tie_word_embeddings": False})
    assert "lm_head.weight" not in tied.tensor_shapes()
    assert untied.tensor_shapes()["lm_head.weight"] == (151936, 2560)
    assert untied.num_parameters - tied.num_parameters == 151936 * 2560
    assert (tied.head_weight_name, untied.head_weight_name) == (
        "model.embed_tokens.weight",
        "lm_head.weight",
    )


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ("qwen3", {}, set()),
        ("qwen3", {"attention_bias": True}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("qwen2", {}, {"q_proj", "k_proj", "v_proj"}),
        ("qwen2", {"attention_bias": False}, {"q_proj", "k_proj", "v_proj"}),
        ("qwen2", {"attention_bias": True, "mlp_bias": True}, {"q_proj", "k_proj", "v_proj"}),
        ("llama", {}, set()),
        ("llama", {"mlp_bias": True}, {"gate_proj", "up_proj", "down_proj"}),
        ("llama", {"attention_bias": True}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_biases_are_those_of_the_architecture(
    base: str, changes: dict[str, Any], expected: set[str]
) -> None:
    """Qwen2 has biases its config does not mention; Qwen3 and Llama have what they say."""
    shapes = read_spec(BASES[base] | changes).layer_shapes(3)
    found = {name.split(".")[-2] for name in shapes if name.endswith(".bias")}
    assert found == expected


def test_head_dim_falls_back_as_in_transformers() -> None:
    """Qwen3 without the field has 128; the others divide the width by the heads."""
    without = {name: value for name, value in QWEN3_4B.items() if name != "head_dim"}
    assert read_spec(without).head_dim == 128
    assert read_spec(QWEN2).head_dim == 64
    assert read_spec(LLAMA | {"head_dim": None}).head_dim == 64


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "block",
    [
        {"rope_scaling": {"rope_type": "yarn", **YARN}},
        {"rope_scaling": {"type": "yarn", **YARN}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}, "rope_theta": None},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 32768},
    ],
    ids=["old", "oldest", "new", "length-from-the-model"],
)
def test_yarn_is_read_from_every_spelling(block: dict[str, Any]) -> None:
    """Old and new configs mean the same; the attention factor is 0.1 ln(4) + 1."""
    rope = read_spec(QWEN3_4B | block).rope
    assert (rope.kind, rope.theta, rope.factor) == ("yarn", 1e6, 4.0)
    assert rope.original_max_positions == 32768
    assert rope.attention_factor == pytest.approx(1.1386294361)


def test_stated_attention_factor_wins() -> None:
    """`attention_factor` is taken as it is, and mscale where it is absent."""
    stated = {"rope_type": "yarn", **YARN, "attention_factor": 1.5}
    scaled = {"rope_type": "yarn", **YARN, "mscale": 2.0, "mscale_all_dim": 1.0}
    assert read_spec(QWEN3_4B | {"rope_scaling": stated}).rope.attention_factor == 1.5
    factor = read_spec(QWEN3_4B | {"rope_scaling": scaled}).rope.attention_factor
    assert factor == pytest.approx(1.2772588722 / 1.1386294361)


def test_plain_frequencies_are_the_geometric_series() -> None:
    """theta ** (-2i / head_dim), float32."""
    frequencies = inverse_frequencies(RopeSpec(theta=10_000.0), 8)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_scaled_frequencies_keep_short_waves_and_stretch_long_ones() -> None:
    """YaRN and Llama 3 leave the first dimension alone and divide the last by the factor."""
    plain = inverse_frequencies(RopeSpec(theta=500_000.0), 64)
    for kind in ("yarn", "llama3"):
        rope = RopeSpec(kind=kind, theta=500_000.0, factor=8.0, original_max_positions=8192)
        ratio = plain / inverse_frequencies(rope, 64)
        assert ratio[0] == pytest.approx(1.0)
        assert ratio[-1] == pytest.approx(8.0)
        assert np.all(np.diff(ratio) > -1e-5)
    linear = RopeSpec(kind="linear", theta=500_000.0, factor=8.0)
    np.testing.assert_allclose(plain / inverse_frequencies(linear, 64), 8.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, "model_type"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "rope_type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters"),
        ({"layer_types": ["full_attention"] * 35 + ["sliding_attention"]}, "layer_types"),
        (
            {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 28},
            "use_sliding_window",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.trust("T-IN-14")
def test_what_has_no_graph_is_refused(changes: dict[str, Any], field: str) -> None:
    """Anything that would be computed wrongly in silence is refused, with field and fix."""
    with pytest.raises(UnsupportedArchitectureError) as caught:
        read_spec(QWEN3_4B | changes)
    assert caught.value.facts["field"] == field
    assert caught.value.fix


def test_unused_sliding_window_is_no_hindrance() -> None:
    """Qwen2.5 and Qwen3 state a window and do not use it."""
    read_spec(QWEN3_4B | {"layer_types": ["full_attention"] * 36, "sliding_window": 4096})
    read_spec(QWEN3_4B | {"use_sliding_window": True, "sliding_window": 4096})
    read_spec(QWEN3_4B | {"use_sliding_window": True, "max_window_layers": 0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", 10**12),
        ("hidden_size", -1),
        ("hidden_size", "2560"),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 2.5),
        ("num_attention_heads", 30),
        ("num_key_value_heads", 0),
        ("head_dim", 127),
        ("head_dim", 10**6),
        ("vocab_size", 10**10),
        ("intermediate_size", float("nan")),
        ("max_position_embeddings", float("inf")),
        ("rms_norm_eps", "tiny"),
        ("rope_theta", 0.5),
        ("rope_theta", 1.0),
        ("rope_theta", float("inf")),
        ("tie_word_embeddings", "yes"),
        ("rope_scaling", [1]),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("rope_scaling", {"rope_type": "linear", "factor": 0.0}),
        (
            "rope_scaling",
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4},
        ),
        ("model_type", None),
        ("model_type", 7),
    ],
)
@pytest.mark.trust("T-IN-14")
def test_broken_field_is_refused_by_name(field: str, value: object) -> None:
    """A value of the wrong type or size raises CheckpointError, not something worse."""
    with pytest.raises(CheckpointError) as caught:
        read_spec(QWEN3_4B | {field: value})
    assert caught.value.fix
    assert len(caught.value.problem) < 500


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(field=st.sampled_from(sorted({*QWEN3_4B, "rope_parameters"})), value=JSON_VALUES)
@pytest.mark.trust("T-IN-14")
def test_no_value_makes_the_reader_crash(field: str, value: object) -> None:
    """Any JSON value in any field is read or refused; nothing large is allocated."""
    try:
        spec = read_spec(QWEN3_4B | {field: value})
    except EdgeError as error:
        json.dumps(str(error))
    else:
        assert len(spec.tensor_shapes()) < 20_000
        assert np.isfinite(inverse_frequencies(spec.rope, spec.head_dim)).all()
