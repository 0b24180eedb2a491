"""The ONNX model against Transformers uncompressed, and against the IR compressed; in float32.

Uncompressed twice, as in test_parity.py: against figures that need no torch to compare with,
and against Transformers itself. Compressed, both engines read one store: the same integers and
scales, so what differs is the order of sums. The project's limit is 1e-3 on the logits and
equal tokens for 64 steps.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import qwen_edge.export
from qwen_edge.export.array_weights import make_random_arrays
from qwen_edge.export.compress import dequantise
from qwen_edge.export.decoder import EMBEDDING_NAME, DecoderSpec, read_spec
from qwen_edge.export.onnx_files import write_onnx_model
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.profiles.matrix_format import MatrixFormat
from qwen_edge.profiles.recipe import Recipe, load_recipe
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES

CheckpointMaker = Callable[..., Path]
StoreMaker = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path(qwen_edge.export.__file__).parent / "demo"
GOLDEN_PATH = ROOT / "tests" / "data" / "parity_golden.npz"
MAX_LOGIT_DIFFERENCE = 1e-3
NUM_STEPS = 64
CONTEXT = 128
FORMS = {"fast": False, "portable": True}


def load_script() -> Any:
    """Import the golden script; it owns the cases' prompts and the Transformers side."""
    path = ROOT / "scripts" / "make_parity_golden.py"
    module_spec = importlib.util.spec_from_file_location("make_parity_golden", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


SCRIPT = load_script()
CASES: dict[str, dict[str, Any]] = SCRIPT.make_cases()


def write_forms(spec: DecoderSpec, store: WeightStore, folder: Path) -> None:
    """Write the model in both forms into folders of these names."""
    for name, is_portable in FORMS.items():
        (folder / name).mkdir()
        write_onnx_model(
            spec, store, folder / name, max_context_tokens=CONTEXT, is_portable=is_portable
        )


def write_uncompressed(spec: DecoderSpec, arrays: Any, folder: Path) -> None:
    """Write float32 weights; as the format that exports as float16, which keeps any dtype."""
    with WeightStore(folder / "spool") as store:
        for name, array in arrays.items():
            if array.ndim == 1:
                store.add_vector(name, array)
            else:
                store.add(name, "fp16", array.shape, -1, {"values": [array]})
        store.freeze()
        write_forms(spec, store, folder)


def generate(run: Any, prompt_ids: list[int]) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Read a prompt token by token and answer greedily; logits of every position, and tokens."""
    rows = [run.forward([token]) for token in prompt_ids]
    tokens: list[int] = []
    while True:
        tokens.append(int(rows[-1].argmax()))
        if len(tokens) == NUM_STEPS:
            return np.stack(rows), tokens
        rows.append(run.forward([tokens[-1]]))


def generate_in_openvino(
    spec: DecoderSpec, store: WeightStore, prompt_ids: list[int]
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Answer greedily with the IR of a store; logits of every position, and tokens."""
    core = import_openvino().Core()
    compiled = core.compile_model(build_decoder(spec, store), "CPU", dict(GOLDEN_PROPERTIES))
    request = compiled.create_infer_request()
    rows: list[npt.NDArray[np.float32]] = []
    tokens: list[int] = []
    ids, total = np.array([prompt_ids]), 0
    for _ in range(NUM_STEPS):
        positions = np.arange(total, total + ids.shape[1])[None]
        total += ids.shape[1]
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": positions,
            "beam_idx": np.zeros(1, np.int32),
        }
        rows.append(request.infer(inputs)["logits"][0].copy())
        tokens.append(int(rows[-1][-1].argmax()))
        ids = np.array([[tokens[-1]]])
    return np.concatenate(rows), tokens


def largest_difference(got: Any, expected: Any, name: str) -> float:
    """Return and print the largest difference and where it is."""
    difference = np.abs(got - expected)
    row, token = np.unravel_index(difference.argmax(), difference.shape)
    print(
        f"{name}: max |Δ| {difference.max():.2e} at row {row}, token {token}: "
        f"expected {expected[row, token]:.6f}, got {got[row, token]:.6f}, "
        f"limit {MAX_LOGIT_DIFFERENCE:.0e}"
    )
    return float(difference.max())


@pytest.mark.parametrize("name", CASES)
def test_both_forms_give_the_stored_logits_and_tokens(
    tmp_path: Path, open_onnx: Any, name: str
) -> None:
    """Same logits and the same 64 tokens as Transformers, without torch."""
    with np.load(GOLDEN_PATH, allow_pickle=False) as stored:
        seed, rows = int(stored[f"{name}/seed"]), stored[f"{name}/rows"].tolist()
        expected, tokens = stored[f"{name}/logits"], stored[f"{name}/tokens"].tolist()
    spec = read_spec(CASES[name])
    write_uncompressed(spec, make_random_arrays(spec, seed), tmp_path)
    prompt = SCRIPT.make_prompt(seed, spec.vocab_size)[0].tolist()
    for form in FORMS:
        run = open_onnx(tmp_path / form)
        found, found_tokens = generate(run, prompt)
        label = f"{name}, {form}"
        assert largest_difference(found[rows], expected, label) < MAX_LOGIT_DIFFERENCE
        assert found_tokens == tokens
        run.reset()
        in_one = run.forward(prompt)[None]
        last = found[len(prompt) - 1][None]
        assert largest_difference(in_one, last, f"{label}, one call") < MAX_LOGIT_DIFFERENCE


@pytest.mark.parametrize("name", CASES)
def test_both_forms_match_transformers(tmp_path: Path, open_onnx: Any, name: str) -> None:
    """Every position's logits, and the same tokens, on a prompt not stored."""
    pytest.importorskip("torch", reason="the reference is Transformers on torch")
    pytest.importorskip("transformers", reason="the reference is Transformers on torch")
    spec = read_spec(CASES[name])
    with np.load(GOLDEN_PATH, allow_pickle=False) as stored:
        seed = int(stored[f"{name}/seed"])
    arrays = make_random_arrays(spec, seed)
    write_uncompressed(spec, arrays, tmp_path)
    prompt = SCRIPT.make_prompt(seed + 1_000, spec.vocab_size, length=29)
    expected, tokens = SCRIPT.run_transformers(CASES[name], arrays, prompt, NUM_STEPS)
    for form in FORMS:
        found, found_tokens = generate(open_onnx(tmp_path / form), prompt[0].tolist())
        label = f"{name}, {form}"
        assert largest_difference(found, expected, label) < MAX_LOGIT_DIFFERENCE
        assert found_tokens == tokens


# model_type and changes to the tiny config.json; None is the demo model.
COMPRESSED: dict[str, tuple[str, dict[str, Any]] | None] = {
    "demo": None,
    "qwen3": ("qwen3", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    # Widths that no group and no block divides: int4 in rows, padded blocks.
    "llama": ("llama", {"hidden_size": 72, "intermediate_size": 90}),
}


# Zero points of 4 bits; formats of a layer mixed, AWQ's factors in float16 weights, too.
RECIPES: dict[str, Recipe] = {
    "int4-awq": load_recipe("int4-awq"),
    "int8": load_recipe("int8"),
    "int4-asymmetric": replace(load_recipe("int4"), symmetric=False, group_size=32),
    "mixed": replace(
        load_recipe("int4-awq"),
        matrices={
            "layers.*.mlp.up_proj": MatrixFormat("fp16", True, -1),
            "layers.*.self_attn.v_proj": MatrixFormat("int8", False, -1),
            "layers.1.self_attn.q_proj": MatrixFormat("int4", False, 64),
        },
    ),
}


CASES_COMPRESSED = [
    (name, recipe)
    for name in COMPRESSED
    for recipe in RECIPES
    if recipe in ("int4-awq", "int8") or name in ("qwen3", "llama")
]


@pytest.mark.parametrize(("name", "recipe"), CASES_COMPRESSED)
def test_onnx_and_the_ir_of_one_store_agree(
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
    compress_checkpoint: StoreMaker,
    open_onnx: Any,
    name: str,
    recipe: str,
) -> None:
    """The same integers, so the same logits to rounding, and the same 64 tokens."""
    case = COMPRESSED[name]
    checkpoint = DEMO if case is None else make_checkpoint(tmp_path / "c", case[0], **case[1])
    spec, store = compress_checkpoint(tmp_path / "spool", checkpoint, RECIPES[recipe])
    prompt = SCRIPT.make_prompt(5, 990, length=20)[0].tolist()
    with store:
        write_forms(spec, store, tmp_path)
        expected, tokens = generate_in_openvino(spec, store, prompt)
    for form in FORMS:
        found, found_tokens = generate(open_onnx(tmp_path / form), prompt)
        label = f"{name}, {recipe}, {form}"
        assert largest_difference(found, expected, label) < MAX_LOGIT_DIFFERENCE
        assert found_tokens == tokens


def test_no_engine_rounds_the_embedding(tmp_path: Path, compress_checkpoint: StoreMaker) -> None:
    """OpenVINO computes rows in float32, although the IR says float16 there, and so do we.

    Were it to follow the IR, the two formats would differ by a float16's rounding at the very
    first step.
    """
    spec, store = compress_checkpoint(tmp_path / "spool", DEMO, "int4-awq")
    ov = import_openvino()
    with store:
        stored = store.tensors[EMBEDDING_NAME]
        pieces = {"values": stored.values, "scale": stored.scale, "zero_point": stored.zero_point}
        parts = {key: store.array(piece) for key, piece in pieces.items()}
        exact = dequantise(parts, stored.format)
        halves = parts["values"].astype(np.float16) - parts["zero_point"].astype(np.float16)
        rounded = (halves * parts["scale"]).astype(np.float32)
        ids = ov.opset15.parameter([-1], ov.Type.i64)
        rows = ov.opset15.gather(store.embedding(EMBEDDING_NAME), ids, np.int64(0))
        model = ov.Model([rows], [ids], "embedding")
        compiled = ov.Core().compile_model(model, "CPU", dict(GOLDEN_PROPERTIES))
        found = compiled([np.arange(spec.vocab_size)])[0]
    print(f"float16 would differ by up to {np.abs(rounded - exact).max():.1e}")
    assert np.abs(rounded - exact).max() > 1e-5
    np.testing.assert_array_equal(found, exact)
