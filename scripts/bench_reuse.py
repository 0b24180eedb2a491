"""What the cache saves: parts of `bench_runtime.py`.

The second turn of a long conversation against the same prompt computed whole, and a snapshot read
from its file against its prompt computed again.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.session import Session

GREEDY = SamplingParams(temperature=0.0)
ANSWER_TOKENS = 24


def measure_second_turn(model: Model, rounds: int, num_tokens: int) -> dict[str, Any]:
    """Measure the first token of a second turn, and the same prompt from an empty cache."""
    pairs = []
    for number in range(rounds):
        text = make_text(model, num_tokens, seed=number)
        with model.session(sampling=GREEDY, thinking=False, max_new_tokens=ANSWER_TOKENS) as chat:
            forget(model)
            chat.ask(text)
            second = chat.ask("And what follows from it?", max_new_tokens=1)
            prompt_tokens = second.timings.prompt_tokens
            chat.rollback()
            forget(model)
            whole = chat.ask("And what follows from it?", max_new_tokens=1)
        assert second.timings.ttft_s is not None and whole.timings.ttft_s is not None
        pairs.append((second.timings.ttft_s, whole.timings.ttft_s))
        print(prompt_tokens, second.timings, whole.timings, file=sys.stderr, flush=True)
    return {
        "second_turn_prompt_tokens": prompt_tokens,
        "second_turn_computed_tokens": second.timings.prefill_tokens,
        "second_turn_first_token_s": round(median(second for second, _ in pairs), 3),
        "second_turn_whole_prefill_s": round(median(whole for _, whole in pairs), 3),
        "second_turn_share": round(median(second / whole for second, whole in pairs), 4),
    }


def measure_snapshot(model: Model, rounds: int, num_tokens: int) -> dict[str, Any]:
    """Measure reading a session's file against computing its prompt, and its size."""
    prefills, restores, saves = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            forget(model)
            chat = model.session(sampling=GREEDY, thinking=False, max_new_tokens=1)
            answer = chat.ask(make_text(model, num_tokens, seed=100 + number))
            assert answer.timings.ttft_s is not None
            prefills.append(answer.timings.ttft_s)
            path = Path(folder) / "session"
            start = time.perf_counter()
            chat.save(path)
            saves.append(time.perf_counter() - start)
            cached = len(chat.cached_ids)
            forget(model)
            start = time.perf_counter()
            restored: Session = model.load_session(path)
            restores.append(time.perf_counter() - start)
            if len(restored.cached_ids) != cached:
                raise SystemExit("the snapshot did not bring the whole cache back")
            size = path.stat().st_size
            print(prefills[-1], saves[-1], restores[-1], size, file=sys.stderr, flush=True)
    pairs = list(zip(prefills, restores, strict=True))
    return {
        "snapshot_tokens": cached,
        "snapshot_kb_per_token": round(size / cached / 1_000, 1),
        "snapshot_prefill_s": round(median(prefills), 3),
        "snapshot_save_s": round(median(saves), 3),
        "snapshot_restore_s": round(median(restores), 3),
        "snapshot_restore_ratio": round(median(prefill / restore for prefill, restore in pairs), 1),
    }


def forget(model: Model) -> None:
    """Empty the cache, and what was put aside of it."""
    model.backend.reset()
    model.prefix_cache.clear_parking()


def make_text(model: Model, num_tokens: int, *, seed: int) -> str:
    """Return text of about as many tokens, another one for each seed."""
    generator = np.random.default_rng(seed)
    words = ["harbour", "ledger", "northern", "seventeen", "paper", "because", "granite", "slowly"]
    text = " ".join(words[index] for index in generator.integers(0, len(words), num_tokens))
    ids = model.tokenizer.encode(text)[: num_tokens - 20]
    return model.tokenizer.decode(ids)
