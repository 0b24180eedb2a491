"""Formats that our kernels do not have: the engine computes those, and rightly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwen_edge.export
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.profiles.matrix_format import MatrixFormat
from qwen_edge.profiles.recipe import Recipe, load_recipe
from qwen_edge.runtime.backends.decoder_preparing import prepare_decoder
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES
from qwen_edge.runtime.kernels import find_kernels
from qwen_edge.runtime.recipe_facts import is_for_own_kernels

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
# With a cache of the engine, so that a model runs without the runtime's own.
FAST = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
    "KV_CACHE_PRECISION": "f16",
}
INT4 = load_recipe("int4")
# The recipe, and how many of the 4 * 7 products in layers are not ours.
CASES: dict[str, tuple[Recipe, int]] = {
    "asymmetric": (replace(INT4, symmetric=False), 28),
    "nf4": (load_recipe("nf4-channel"), 28),
    "mixed": (
        replace(
            INT4,
            matrices={
                "layers.*.mlp.down_proj": MatrixFormat("int8", False, -1),
                "layers.0.self_attn.o_proj": MatrixFormat("int8", True, -1),
                "layers.1.self_attn.o_proj": MatrixFormat("int4", True, 32),
                "layers.2.self_attn.o_proj": MatrixFormat("int4", False, 128),
                "layers.3.self_attn.o_proj": MatrixFormat("nf4", True, -1),
            },
        ),
        2,
    ),
}


def run(model: Any, properties: dict[str, Any], num_tokens: int) -> Any:
    compiled = import_openvino().Core().compile_model(model, "CPU", properties)
    inputs = {
        "input_ids": np.random.default_rng(4).integers(10, 900, (1, num_tokens)),
        "attention_mask": np.ones((1, num_tokens), np.int64),
        "position_ids": np.arange(num_tokens)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    return np.array(compiled.create_infer_request().infer(inputs)[0][0])


@pytest.mark.skipif(not find_kernels().names, reason=f"no kernels here: {find_kernels().reason}")
@pytest.mark.parametrize("name", CASES)
def test_other_formats_fall_back_to_the_engines_kernels(
    name: str, tmp_path: Path, compress_checkpoint: Callable[..., Any]
) -> None:
    recipe, num_others = CASES[name]
    spec, store = compress_checkpoint(tmp_path / "spool", DEMO, recipe)
    with store:
        exact = run(build_decoder(spec, store), dict(GOLDEN_PROPERTIES), 24)
        model = build_decoder(spec, store)
        prepared = prepare_decoder(model, "CPU", FAST)
        kinds = [node.get_type_name() for node in model.get_ops()]
        # Attention and angles have no product with weights in them.
        assert kinds.count("MatMul") - 1 == num_others
        found = run(model, dict(prepared.properties), 24)
        del model
    exact = exact[-len(found) :]  # a prepared model gives logits of the last tokens only
    # Activations are rounded to 8 bits, in ours and in the engine's.
    size = np.abs(exact).max()
    assert np.abs(found - exact).max() < 0.1 * size
    assert (found.argmax(axis=-1) == exact.argmax(axis=-1)).mean() > 0.8


def test_plans_know_what_kernels_of_ours_take() -> None:
    found = {
        n: is_for_own_kernels(r.weights, is_symmetric=r.symmetric) for n, (r, _) in CASES.items()
    }
    assert found == {"asymmetric": False, "nf4": False, "mixed": True}
    for name, expected in (("int8", True), ("int4-channel", True), ("fp16", False)):
        recipe = load_recipe(name)
        assert is_for_own_kernels(recipe.weights, is_symmetric=recipe.symmetric) == expected
