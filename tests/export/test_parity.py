"""The native graph against Transformers: logits, greedy tokens, with the KV cache, in float32.

Twice: against figures stored by scripts/make_parity_golden.py, which needs no torch, and
against Transformers itself with other prompts. Limits are those of the project: 1e-3 on the
logits, equal tokens for 64 steps.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.export.array_weights import ArrayWeights, make_random_arrays
from qwen_edge.export.decoder import read_spec
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.runtime.engine import import_openvino

ROOT = Path(__file__).resolve().parents[2]
GOLDEN_PATH = ROOT / "tests" / "data" / "parity_golden.npz"
MAX_LOGIT_DIFFERENCE = 1e-3
NUM_STEPS = 64
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def load_script() -> Any:
    """Import the golden script; it owns the cases' prompts and the Transformers side."""
    path = ROOT / "scripts" / "make_parity_golden.py"
    module_spec = importlib.util.spec_from_file_location("make_parity_golden", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


@dataclass(frozen=True)
class Case:
    """One stored case."""

    name: str
    config: dict[str, Any]
    seed: int
    tokens: list[int]
    rows: list[int]
    logits: Any  # float32 [rows, vocab]


def load_cases() -> dict[str, Case]:
    """Read the golden file."""
    with np.load(GOLDEN_PATH, allow_pickle=False) as stored:
        names = sorted({key.split("/")[0] for key in stored.files})
        return {
            name: Case(
                name=name,
                config=json.loads(str(stored[f"{name}/config"])),
                seed=int(stored[f"{name}/seed"]),
                tokens=stored[f"{name}/tokens"].tolist(),
                rows=stored[f"{name}/rows"].tolist(),
                logits=stored[f"{name}/logits"],
            )
            for name in names
        }


CASES = load_cases()


def run_native(config: dict[str, Any], arrays: Any, prompt_ids: Any) -> tuple[Any, list[int]]:
    """Generate greedily with the native graph; logits of every position fed, and tokens."""
    model = build_decoder(read_spec(config), ArrayWeights(arrays))
    compiled = import_openvino().Core().compile_model(model, "CPU", EXACT)
    request = compiled.create_infer_request()
    rows, tokens, ids, total = [], [], prompt_ids, 0
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


def test_golden_file_holds_the_cases_of_the_script() -> None:
    """The stored cases are the ones that would be stored today."""
    assert {name: case.config for name, case in CASES.items()} == SCRIPT.make_cases()
    assert GOLDEN_PATH.stat().st_size < 200_000


@pytest.mark.parametrize("name", CASES)
def test_native_graph_gives_the_stored_logits_and_tokens(name: str) -> None:
    """Same logits to 1e-3 and the same 64 tokens, without torch."""
    case = CASES[name]
    spec = read_spec(case.config)
    prompt = SCRIPT.make_prompt(case.seed, spec.vocab_size)
    logits, tokens = run_native(case.config, make_random_arrays(spec, case.seed), prompt)
    assert largest_difference(logits[case.rows], case.logits, name) < MAX_LOGIT_DIFFERENCE
    assert tokens == case.tokens


@pytest.mark.parametrize("name", CASES)
def test_native_graph_matches_transformers(name: str) -> None:
    """Every position's logits to 1e-3, and the same tokens, on a prompt not stored."""
    pytest.importorskip("torch", reason="the reference is Transformers on torch")
    pytest.importorskip("transformers", reason="the reference is Transformers on torch")
    case = CASES[name]
    spec = read_spec(case.config)
    arrays = make_random_arrays(spec, case.seed)
    prompt = SCRIPT.make_prompt(case.seed + 1_000, spec.vocab_size, length=29)
    expected, expected_tokens = SCRIPT.run_transformers(case.config, arrays, prompt, NUM_STEPS)
    logits, tokens = run_native(case.config, arrays, prompt)
    assert largest_difference(logits, expected, name) < MAX_LOGIT_DIFFERENCE
    assert tokens == expected_tokens
