"""Random settings against Transformers itself, beyond the stored goldens."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qwen_edge.runtime.decoding.logit_filters import filter_logits
from qwen_edge.runtime.decoding.logit_processors import LogitChanges
from qwen_edge.runtime.decoding.sampling import SamplingParams

NUM_CASES = 300
VOCAB_SIZE = 600


def load_maker() -> ModuleType:
    """Import the maker of the goldens; it owns the Transformers side."""
    path = Path(__file__).parents[2] / "data" / "make_text_goldens.py"
    module_spec = importlib.util.spec_from_file_location("make_text_goldens", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def random_settings(generator: np.random.Generator) -> dict[str, Any]:
    """Return settings of which each is off in about half of the cases."""
    ids = generator.permutation(VOCAB_SIZE)
    settings = {
        "temperature": float(generator.uniform(0.2, 3.0)),
        "top_k": int(generator.integers(1, VOCAB_SIZE)),
        "top_p": float(generator.uniform(0.05, 1.0)),
        "min_p": float(generator.uniform(0.0, 0.3)),
        "typical_p": float(generator.uniform(0.05, 1.0)),
        "repetition_penalty": float(generator.uniform(0.5, 2.0)),
        "logit_bias": [[int(i), float(generator.uniform(-9, 9))] for i in sorted(ids[:20])],
        "banned_token_ids": sorted(ids[20:40].tolist()),
    }
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    chosen = {key: value for key, value in settings.items() if generator.random() < 0.5}
    return {**off, **chosen}


def test_random_settings_keep_what_transformers_keeps() -> None:
    pytest.importorskip("torch", reason="the reference is Transformers on torch")
    pytest.importorskip("transformers", reason="the reference is Transformers on torch")
    maker = load_maker()
    generator = np.random.default_rng(20)
    for _ in range(NUM_CASES):
        settings = random_settings(generator)
        logits = (generator.standard_normal(VOCAB_SIZE) * 3).astype(np.float32)
        prompt_ids = generator.integers(0, VOCAB_SIZE, 90).tolist()
        expected_ids, expected = maker.transform(settings, logits.tolist(), prompt_ids)
        params = SamplingParams(**settings)
        # What is repeated is the same in the prompt and in the answer.
        changes = LogitChanges(params, prompt_ids[:50])
        for token_id in prompt_ids[50:]:
            changes.record(token_id)
        scores = changes.apply(logits, None)
        token_ids, weights = filter_logits(scores, params, float(scores.max()))
        assert token_ids.tolist() == expected_ids, settings
        np.testing.assert_allclose(weights / weights.sum(), expected, atol=1e-5)
