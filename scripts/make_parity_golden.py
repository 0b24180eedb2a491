"""Write the logits and tokens that Transformers gives for tiny models of every supported kind.

The parity tests compare the native graph with these figures on machines without torch. The
weights are not stored: they come from a seeded generator. Needs torch and transformers:

    python scripts/make_parity_golden.py

For every case it looks for a seed whose tokens are varied and do not hang on rounding, and
writes tests/data/parity_golden.npz.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / top) for top in ("export", "runtime", "profiles")]

from qwen_edge.export.array_weights import make_random_arrays  # noqa: E402
from qwen_edge.export.decoder import read_spec  # noqa: E402

GOLDEN_PATH = ROOT / "tests" / "data" / "parity_golden.npz"
NUM_PROMPT_TOKENS = 13
NUM_NEW_TOKENS = 64
MIN_LEAD = 2e-3  # logits, best over second; a hundred times the rounding between engines
MIN_DISTINCT_TOKENS = 8  # a model that repeats itself would hide a wrong cache
_MAX_SEEDS = 200

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_FAMILIES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


def make_cases() -> dict[str, dict[str, Any]]:
    """Return the config.json of every case, by name."""
    cases: dict[str, dict[str, Any]] = {}
    for model_type in _FAMILIES:
        for is_tied in (False, True):
            for rope_name, rope in (("default", None), ("yarn", _YARN), ("llama3", _LLAMA3)):
                tie = "tied" if is_tied else "untied"
                config = _make_config(model_type, tie_word_embeddings=is_tied)
                if rope is not None:
                    config["rope_scaling"] = dict(rope)
                cases[f"{model_type}-{tie}-{rope_name}"] = config
    linear = {"type": "linear", "factor": 2.0}
    new_style = {**_YARN, "rope_theta": 5000.0, "attention_factor": 1.25, "beta_fast": 16.0}
    cases |= {
        "qwen3-linear": _make_config("qwen3", rope_scaling=linear),
        "qwen3-rope-parameters": _make_config("qwen3", rope_parameters=new_style),
        "qwen3-attention-bias": _make_config("qwen3", attention_bias=True),
        "qwen3-one-kv-head": _make_config("qwen3", num_key_value_heads=1),
        "llama-all-biases": _make_config("llama", attention_bias=True, mlp_bias=True),
        "llama-no-sharing": _make_config("llama", num_key_value_heads=4),
    }
    return cases


def _make_config(model_type: str, **changes: object) -> dict[str, Any]:
    """Return a tiny config.json with some fields changed."""
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [_FAMILIES[model_type]],
        **_SIZES,
    }
    if model_type == "qwen3":
        config["head_dim"] = 32  # not hidden / heads, as in the published models
    if "rope_parameters" not in changes:
        config["rope_theta"] = 10_000.0
    return config | changes


def run_transformers(
    config: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[np.float32]],
    prompt_ids: npt.NDArray[np.int64],
    num_new_tokens: int,
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Generate greedily with Transformers in float32, with its cache and plain attention.

    Args:
        config: A config.json.
        arrays: The weights by tensor name.
        prompt_ids: int64 [1, length].
        num_new_tokens: Tokens to generate.

    Returns:
        Logits float32 [length + num_new_tokens - 1, vocab], one row per position fed, and
        the tokens.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)  # more threads only slow a model this small down
    fields = {name: value for name, value in config.items() if name != "model_type"}
    parsed = AutoConfig.for_model(config["model_type"], **json.loads(json.dumps(fields)))
    model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager").float().eval()
    state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    loaded = model.load_state_dict(state, strict=False)
    missing = set(loaded.missing_keys) - {"lm_head.weight"}
    if missing or loaded.unexpected_keys:
        raise ValueError(f"missing {sorted(missing)}, unexpected {loaded.unexpected_keys}")
    model.tie_weights()
    rows, tokens, cache = [], [], None
    ids = torch.from_numpy(prompt_ids)
    with torch.no_grad():
        for _ in range(num_new_tokens):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            rows.append(output.logits[0].numpy())
            tokens.append(int(rows[-1][-1].argmax()))
            ids = torch.tensor([[tokens[-1]]])
    return np.concatenate(rows), tokens


def make_prompt(seed: int, vocab_size: int, length: int = NUM_PROMPT_TOKENS) -> Any:
    """Return random token ids, int64 [1, length], the same for a seed for ever."""
    ids = np.random.RandomState(seed).randint(0, vocab_size, (1, length))
    return ids.astype(np.int64)


def find_seed(config: Mapping[str, Any]) -> tuple[int, Any, list[int]]:
    """Return the first seed whose tokens are varied and do not hang on rounding.

    Args:
        config: A config.json.

    Returns:
        The seed, the logits and the tokens, as `run_transformers` gives them.

    Raises:
        ValueError: No seed will do.
    """
    spec = read_spec(config)
    for seed in range(_MAX_SEEDS):
        prompt = make_prompt(seed, spec.vocab_size)
        weights = make_random_arrays(spec, seed)
        logits, tokens = run_transformers(config, weights, prompt, NUM_NEW_TOKENS)
        best = np.sort(logits[NUM_PROMPT_TOKENS - 1 :], axis=-1)
        lead = float((best[:, -1] - best[:, -2]).min())
        if lead >= MIN_LEAD and len(set(tokens)) >= MIN_DISTINCT_TOKENS:
            return seed, logits, tokens
    raise ValueError(f"no seed below {_MAX_SEEDS} gives clear and varied tokens")


def main() -> int:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description="Write the parity tests' golden figures.")
    parser.add_argument("--output", type=Path, default=GOLDEN_PATH)
    path = parser.parse_args().output
    arrays: dict[str, Any] = {}
    for name, config in make_cases().items():
        seed, logits, tokens = find_seed(config)
        print(f"{name:24} seed {seed:2}, {len(set(tokens))} distinct tokens")
        arrays[f"{name}/config"] = np.array(json.dumps(config))
        arrays[f"{name}/seed"] = np.array(seed)
        arrays[f"{name}/tokens"] = np.array(tokens, np.int16)
        # The last prompt positions and the last step stand for all.
        kept = [*range(NUM_PROMPT_TOKENS - 4, NUM_PROMPT_TOKENS), len(logits) - 1]
        arrays[f"{name}/rows"] = np.array(kept, np.int16)
        arrays[f"{name}/logits"] = logits[kept]
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
